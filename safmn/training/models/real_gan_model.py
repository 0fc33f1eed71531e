"""Super-resolution of really degraded images, GAN stages: pixel, perceptual, artefact and adversarial losses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from safmn.errors import OptionError
from safmn.registry import MODEL_REGISTRY, OURS
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.training.models.base_model import Batch, Model, StepResult, reconstruction_losses, target_of, total_nonfinite

if TYPE_CHECKING:
    from safmn.options import Options

_ARTEFACT_WINDOW = 7  # pixels; LDL's local variance (arXiv 2203.09195, section 3.2)

# name in the log -> (key of the option file, key that says whether its target is the sharpened GT)
_FIDELITY = {
    "l_g_pix": ("pixel_opt", "l1_gt_usm"),
    "l_g_freq": ("fft_opt", "l1_gt_usm"),
    "l_g_percep": ("perceptual_opt", "percep_gt_usm"),
}


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradients for the network's weights inside the block; they still flow through it to its input."""
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in zip(network.parameters(), wanted, strict=True):
            parameter.requires_grad_(requires_grad)


@MODEL_REGISTRY.register()
class RealGANModel(Model):
    """Generator and discriminator in turn, as in Real-ESRGAN (arXiv 2107.10833), with the artefact loss of LDL.

    ``net_d_iters`` and ``net_d_init_iters``: the generator is trained in iterations after ``net_d_init_iters`` that are
    multiples of ``net_d_iters``, the discriminator in all.

    Raises:
        OptionError: ``network_d``, ``optim_d`` or ``gan_opt`` is missing; the artefact loss without an average.
    """

    degrades = True
    has_discriminator = True

    def __init__(self, options: Options, execution: Execution, ranks: Ranks) -> None:
        super().__init__(options, execution, ranks)
        if execution.cuda_graph:
            raise OptionError(
                f"{options.source}: train.cuda_graph: true is for models without a discriminator; leave it out"
            )
        gan = self._build_loss("gan_opt")
        if options.network_d is None or gan is None:
            raise OptionError(f"{options.source}: RealGANModel needs network_d and train.gan_opt")
        self.gan = gan
        built = {name: self._build_loss(key) for name, (key, _) in _FIDELITY.items()}
        self.fidelity = {name: loss for name, loss in built.items() if loss is not None}
        self.artefacts = self._build_loss("ldl_opt") or self._build_loss("artifacts_opt")
        self.net_g = self._add_network("net_g", options.network_g)
        self.net_d = self._add_network("net_d", options.network_d)
        if self.artefacts is not None and self.net_g.average is None:
            raise OptionError(f"{options.source}: train.ldl_opt compares with the average; set train.ema_decay")
        self._outputs: list[Tensor] = []
        self._seen: list[Tensor] = []  # the discriminator's buffers before the step under way

    def training_step(self, batches: Sequence[Batch], iteration: int) -> StepResult:
        """The generator's step, where it is its turn, then the discriminator's."""
        self._outputs = []
        self._seen = self.net_d.buffers()  # the generator's step moves them, too
        train = self.train
        losses: dict[str, Tensor] = {}
        flags = []
        if iteration > train.net_d_init_iters and iteration % train.net_d_iters == 0:
            with frozen(self.net_d.bare):
                losses |= self.net_g.accumulate(batches, self._generator_losses)
            flags.append(self.net_g.update(losses))
        else:
            self._only_predict(batches)
        judged = [
            (batch, output, real) for batch, output in zip(batches, self._outputs, strict=True) for real in (1, 0)
        ]
        discriminator = self.net_d.accumulate(judged, self._discriminator_losses, parts=len(batches))
        flags.append(self.net_d.update(discriminator))
        bad = total_nonfinite(*flags)
        self.net_d.put_back(self._seen, bad)
        return StepResult(losses | discriminator, bad)

    def abandon_step(self) -> bool:
        """As every model's."""
        whole = super().abandon_step()
        if whole and self._seen:
            self.net_d.put_back(self._seen, torch.ones((), device=self.execution.device))
        return whole

    def _only_predict(self, batches: Sequence[Batch]) -> None:
        with torch.no_grad():
            self._outputs = [self._predict(self.net_g, batch["lq"]) for batch in batches]
        self.net_g.average_alone()

    def _generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        output = self._predict(self.net_g, batch["lq"])  # (B, 3, s*h, s*w)
        self._outputs.append(output.detach())
        losses: dict[str, Tensor] = {}
        for name, criterion in self.fidelity.items():
            losses |= reconstruction_losses({name: criterion}, output, self._target(batch, _FIDELITY[name][1]))
        if self.artefacts is not None:
            losses["l_g_ldl"] = self._artefact_loss(batch, output)
        losses["l_g_gan"] = self._adversarial_loss(batch, output)
        return losses

    def _adversarial_loss(self, batch: Batch, output: Tensor) -> Tensor:
        # the bare discriminator: it is frozen here, so there is nothing for DistributedDataParallel to exchange
        loss: Tensor = self.gan(self._judge(self.net_d.bare, output), True, is_disc=False)
        return loss

    def _artefact_loss(self, batch: Batch, output: Tensor) -> Tensor:
        from basicsr.losses.loss_util import get_refined_artifact_map

        assert self.artefacts is not None
        assert self.net_g.average is not None
        with torch.no_grad(), self.execution.autocast():
            average = self.net_g.average.network(batch["lq"]).float()
        weight = get_refined_artifact_map(batch["gt"], output, average, _ARTEFACT_WINDOW)
        loss: Tensor = self.artefacts(weight * output, weight * batch["gt"])
        return loss

    def _discriminator_losses(self, judged: tuple[Batch, Tensor, int]) -> dict[str, Tensor]:
        """The loss on real images or on outputs; each has a backward pass of its own, as in BasicSR."""
        batch, output, real = judged
        images = self._target(batch, "gan_gt_usm") if real else output
        name = "l_d_real" if real else "l_d_fake"
        return {name: self.gan(self._judge(self.net_d.forward, images), bool(real), is_disc=True)}

    def _judge(self, discriminator: object, images: Tensor) -> Tensor:
        if not self.execution.channels_last:  # the generator's output may lie otherwise
            images = images.contiguous()
        with self.execution.autocast():
            scores: Tensor = discriminator(images)  # type: ignore[operator]
        return scores.float()

    def _target(self, batch: Batch, key: str) -> Tensor:
        return target_of(batch, sharpened=bool(self.options.degradation.get(key)))


@MODEL_REGISTRY.register(suffix=OURS)
class RealESRGANModel(RealGANModel):
    """Real-ESRGAN's name for the GAN stage. Its files are degraded as there: the sharpened GT, first blurred."""

    implied_degradation: ClassVar[Mapping[str, Any]] = {
        "degrade_sharpened": True,
        "resize_first": False,
        "resize_modes": ["area", "bilinear", "bicubic"],
    }


@MODEL_REGISTRY.register(suffix=OURS)
class SRGANModel(RealGANModel):
    """BasicSR's name for generator and discriminator on pairs, as in SRGAN (arXiv 1609.04802)."""

    degrades = False


@MODEL_REGISTRY.register(suffix=OURS)
class ESRGANModel(SRGANModel):
    """BasicSR's name for SRGAN with relativistic average scores, as in ESRGAN (arXiv 1809.00219, section 3.2).

    What counts is how much more real an image looks than the mean of the other kind in the batch.
    """

    def _adversarial_loss(self, batch: Batch, output: Tensor) -> Tensor:
        real = self._judge(self.net_d.bare, self._target(batch, "gan_gt_usm")).detach()
        fake = self._judge(self.net_d.bare, output)
        loss: Tensor = self.gan(real - fake.mean(), False, is_disc=False) + self.gan(
            fake - real.mean(), True, is_disc=False
        )
        return loss / 2

    def _discriminator_losses(self, judged: tuple[Batch, Tensor, int]) -> dict[str, Tensor]:
        """As the base class's, half of each; the discriminator sees the images in BasicSR's order."""
        batch, output, real = judged
        if real:
            with torch.no_grad():
                fake = self._judge(self.net_d.bare, output).mean()
            scores = self._judge(self.net_d.forward, self._target(batch, "gan_gt_usm"))
            self._mean_of_real = scores.detach().mean()  # for the outputs of the same batch, which come next
            return {"l_d_real": self.gan(scores - fake, True, is_disc=True) / 2}
        scores = self._judge(self.net_d.forward, output)
        return {"l_d_fake": self.gan(scores - self._mean_of_real, False, is_disc=True) / 2}
