"""Real-world super-resolution, GAN stage: pixel, perceptual, artefact and adversarial losses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from safmn.data.collating import image_of
from safmn.errors import OptionError
from safmn.registry import MODEL_REGISTRY, OURS
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.training.models.base_model import Batch, Criterion, Model, StepResult, target_of

if TYPE_CHECKING:
    from safmn.options import Options

_ARTEFACT_WINDOW = 7  # pixels; LDL's local variance (arXiv 2203.09195, section 3.2)


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Compute no gradients for the network's weights inside the block; gradients still flow through to its input."""
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in zip(network.parameters(), wanted, strict=True):
            parameter.requires_grad_(requires_grad)


@MODEL_REGISTRY.register()
class RealGANModel(Model):
    """Trains generator and discriminator in turn, as in Real-ESRGAN (arXiv 2107.10833), with the artefact loss of LDL.

    The discriminator is trained in every iteration. The generator is trained in iterations after ``net_d_init_iters``
    that are multiples of ``net_d_iters``.

    Raises:
        OptionError: ``network_d``, ``optim_d`` or ``gan_opt`` is missing, ``cuda_graph`` is set, or an artefact loss is
            set without an EMA.
    """

    degrades = True
    has_discriminator = True
    loss_prefix = "l_g_"

    def __init__(self, options: Options, execution: Execution, ranks: Ranks) -> None:
        super().__init__(options, execution, ranks)
        if execution.cuda_graph:
            raise OptionError(
                f"{options.source}: train.cuda_graph: true works for models without a discriminator only; remove it"
            )
        adversarial = [criterion for criterion in self.criteria if criterion.role == "adversarial"]
        if options.network_d is None or len(adversarial) != 1:
            raise OptionError(f"{options.source}: RealGANModel needs network_d and one adversarial loss, train.gan_opt")
        self.adversarial = adversarial[0]
        self.gan = self.adversarial.module
        self.net_g = self._add_network("net_g", options.network_g)
        self.net_d = self._add_network("net_d", options.network_d)
        if self.net_g.average is None and any(criterion.role == "artefact" for criterion in self.criteria):
            raise OptionError(f"{options.source}: train.ldl_opt compares with the EMA network; set train.ema_decay")
        self._buffers_before: list[Tensor] = []  # the discriminator's, before the current step

    def training_step(self, batches: Sequence[Batch], iteration: int) -> StepResult:
        """Train the generator, if this iteration trains it, then the discriminator on the generator's outputs."""
        net_g, net_d, train, parts = self.net_g, self.net_d, self.train, len(batches)
        self._buffers_before = net_d.buffers()  # the generator's step also changes them
        losses: dict[str, Tensor] = {}
        bad = []  # for each update whether a loss or gradient was NaN or Inf
        if iteration > train.net_d_init_iters and iteration % train.net_d_iters == 0:
            outputs = []
            with frozen(net_d.bare):
                for batch in net_g.micro_batches(batches, parts=parts):
                    output = self._predict(net_g, image_of(batch, "lq"))  # (B, 3, s*h, s*w)
                    outputs.append(output.detach())
                    net_g.backward(self._generator_losses(batch, output))
            bad.append(net_g.update())
            losses = net_g.losses
        else:
            with torch.no_grad():
                outputs = [self._predict(net_g, image_of(batch, "lq")) for batch in batches]
            net_g.average_alone()
        pairs = zip(batches, outputs, strict=True)
        judged = [(batch, output, is_real) for batch, output in pairs for is_real in (True, False)]
        for batch, output, is_real in net_d.micro_batches(judged, parts=parts):  # two backward passes, as in BasicSR
            net_d.backward(self._discriminator_loss(batch, output, is_real=is_real))
        bad.append(net_d.update())
        any_bad = torch.stack(bad).max()
        net_d.put_back(self._buffers_before, any_bad)
        return StepResult(losses | net_d.losses, any_bad)

    def abandon_step(self) -> bool:
        """Undo a training step that failed, as in the base class, including the discriminator's buffers."""
        whole = super().abandon_step()
        if whole and self._buffers_before:
            self.net_d.put_back(self._buffers_before, torch.ones((), device=self.execution.device))
        return whole

    def _generator_losses(self, batch: Batch, output: Tensor) -> dict[str, Tensor]:
        losses = self._image_losses(batch, output)
        for criterion in self.criteria:
            if criterion.role == "artefact":
                losses[criterion.name] = self._artefact_loss(criterion, batch, output)
        losses[self.adversarial.name] = self._adversarial_loss(batch, output)
        return losses

    def _sharpened(self, criterion: Criterion) -> bool:
        key = "percep_gt_usm" if criterion.section["type"] == "PerceptualLoss" else "l1_gt_usm"
        return bool(self.options.degradation.get(key) if criterion.sharpened is None else criterion.sharpened)

    def _adversarial_loss(self, batch: Batch, output: Tensor) -> Tensor:
        # Without DistributedDataParallel: the discriminator is frozen here, so there are no gradients to exchange.
        loss: Tensor = self.gan(self._judge(self.net_d.bare, output), True, is_disc=False)
        return loss

    def _artefact_loss(self, criterion: Criterion, batch: Batch, output: Tensor) -> Tensor:
        from basicsr.losses.loss_util import get_refined_artifact_map

        assert self.net_g.average is not None
        with torch.no_grad(), self.execution.autocast():
            average = self.net_g.inference(batch["lq"]).float()
        weight = get_refined_artifact_map(batch["gt"], output, average, _ARTEFACT_WINDOW)
        loss: Tensor = criterion.module(weight * output, weight * batch["gt"])
        return loss

    def _discriminator_loss(self, batch: Batch, output: Tensor, *, is_real: bool) -> dict[str, Tensor]:
        """Return the loss on the real images of a batch or on the generator's outputs."""
        images = self._target(batch, "gan_gt_usm") if is_real else output
        name = "l_d_real" if is_real else "l_d_fake"
        return {name: self.gan(self._judge(self.net_d.forward, images), is_real, is_disc=True)}

    def _judge(self, discriminator: object, images: Tensor) -> Tensor:
        if not self.execution.channels_last:  # the generator's output may have another memory format
            images = images.contiguous()
        with self.execution.autocast():
            scores: Tensor = discriminator(images)  # type: ignore[operator]
        return scores.float()

    def _target(self, batch: Batch, key: str) -> Tensor:
        return target_of(batch, sharpened=bool(self.options.degradation.get(key)))


@MODEL_REGISTRY.register(suffix=OURS)
class RealESRGANModel(RealGANModel):
    """Real-ESRGAN's name for the GAN stage, with its degradation of the sharpened GT, which blurs before it resizes."""

    implied_degradation: ClassVar[Mapping[str, Any]] = {
        "degrade_sharpened": True,
        "resize_first": False,
        "resize_modes": ["area", "bilinear", "bicubic"],
    }


@MODEL_REGISTRY.register(suffix=OURS)
class SRGANModel(RealGANModel):
    """BasicSR's name for training generator and discriminator on pairs, as in SRGAN (arXiv 1609.04802)."""

    degrades = False


@MODEL_REGISTRY.register(suffix=OURS)
class ESRGANModel(SRGANModel):
    """BasicSR's name for SRGAN with relativistic average scores, as in ESRGAN (arXiv 1809.00219, section 3.2).

    The score of a real image is relative to the mean score of the outputs in the batch, and vice versa.
    """

    def _adversarial_loss(self, batch: Batch, output: Tensor) -> Tensor:
        real = self._judge(self.net_d.bare, self._target(batch, "gan_gt_usm")).detach()
        fake = self._judge(self.net_d.bare, output)
        loss: Tensor = self.gan(real - fake.mean(), False, is_disc=False) + self.gan(
            fake - real.mean(), True, is_disc=False
        )
        return loss / 2

    def _discriminator_loss(self, batch: Batch, output: Tensor, *, is_real: bool) -> dict[str, Tensor]:
        """Return half of the loss on real images or on outputs; the discriminator sees them in BasicSR's order."""
        if is_real:
            with torch.no_grad():
                fake = self._judge(self.net_d.bare, output).mean()
            scores = self._judge(self.net_d.forward, self._target(batch, "gan_gt_usm"))
            self._mean_of_real = scores.detach().mean()  # for the outputs of the same batch, which follow
            return {"l_d_real": self.gan(scores - fake, True, is_disc=True) / 2}
        scores = self._judge(self.net_d.forward, output)
        return {"l_d_fake": self.gan(scores - self._mean_of_real, False, is_disc=True) / 2}
