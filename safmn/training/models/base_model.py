"""The base class of all models: what the training loop calls."""

from __future__ import annotations

import dataclasses
import logging
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import msgspec
import torch
from torch import Tensor, nn

from safmn import weights
from safmn.data.collating import image_of
from safmn.degradations.sharpening import sharpen
from safmn.errors import CheckpointError, OptionError, located
from safmn.optim.schedules import build_schedule
from safmn.options.losses import Role, loss_entries
from safmn.options.problems import show_path
from safmn.options.types import NETWORK_KEYS
from safmn.own_code import defined_at
from safmn.registry import ARCH_REGISTRY, LOSS_REGISTRY, build
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.training.models.trained_network import Batch, TrainedNetwork, scalar

if TYPE_CHECKING:
    from safmn.options import Options
    from safmn.options.types import TrainSection

logger = logging.getLogger(__name__)

__all__ = ["Batch", "Model", "StepResult"]


@dataclass(frozen=True)
class StepResult:
    """The result of one iteration.

    Attributes:
        losses: each loss by its name in the log, a detached scalar on the device.
        nonfinite: scalar on the device, 1.0 if a loss or gradient was NaN or Inf, else 0.0.
    """

    losses: dict[str, Tensor]
    nonfinite: Tensor


def checked_result(model: object, result: Any) -> StepResult:
    """Return what a model's ``training_step`` returned.

    Raises:
        TypeError: it is no :class:`StepResult`.
    """
    if not isinstance(result, StepResult):
        name = type(model).__name__
        raise TypeError(
            f"{name}.training_step returns {type(result).__name__}; return the StepResult of SRModel's, or one"
        )
    return result


_PUBLISHED_PERCEPTUAL = ("l_percep", "l_g_percep")  # the style loss of these is called l_style, as in BasicSR


@dataclass(frozen=True)
class Criterion:
    """A loss of the run; see :class:`safmn.options.losses.LossEntry`. ``name`` is its name in the log, with prefix."""

    name: str
    module: nn.Module
    role: Role
    sharpened: bool | None
    section: Mapping[str, Any]


class Model(ABC):
    """Networks, losses and the training step.

    A subclass sets :attr:`networks` (``net_g`` first) and implements :meth:`training_step`. Its class attributes decide
    which keys an option file may have.

    Attributes:
        degrades: whether it reads the keys of Real-ESRGAN's degradation.
        implied_degradation: degradation keys with another default for this model.
        has_discriminator: whether it trains ``network_d``; None if unknown, and then nothing is checked.
        takes_teacher: whether ``train.teacher`` has an effect.
        loss_prefix: prefix of the names of the losses in the log.
    """

    degrades: ClassVar[bool] = False
    implied_degradation: ClassVar[Mapping[str, Any]] = {}
    has_discriminator: ClassVar[bool | None] = None
    takes_teacher: ClassVar[bool] = False
    loss_prefix: ClassVar[str] = "l_"

    networks: dict[str, TrainedNetwork]
    criteria: list[Criterion]

    def __init__(self, options: Options, execution: Execution, ranks: Ranks) -> None:
        self.options = options
        self.train = training_section(options)
        self.execution = execution
        self.ranks = ranks
        self.networks = {}
        self.criteria = self._build_losses()

    @abstractmethod
    def training_step(self, batches: Sequence[Batch], iteration: int) -> StepResult:
        """Run one iteration: forward, backward and update.

        Args:
            batches: micro-batches with the images ``lq`` (B, 3, h, w) and ``gt`` (B, 3, s*h, s*w), in [0, 1].
            iteration: counted from 1.
        """

    @property
    def validation_network(self) -> nn.Module:
        """The network to validate: the EMA of net_g if there is one, else net_g."""
        return self.networks["net_g"].inference

    def fingerprints(self) -> dict[str, str]:
        """Return a hash, by option key, of each file beside the data sets that affects the weights."""
        return {}

    def set_learning_rate(self, iteration: int) -> None:
        """Set every optimiser's learning rate for this iteration, counted from 1."""
        for network in self.networks.values():
            network.set_learning_rate(iteration)

    def abandon_step(self) -> bool:
        """Undo a training step that failed, and return whether that was possible."""
        if any(network.moved for network in self.networks.values()):
            return False
        for network in self.networks.values():
            network.abandon_step()
        return True

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the state of every network by name; see ``TrainedNetwork.state``."""
        return {name: network.state() for name, network in self.networks.items()}

    def load_state(self, state: Mapping[str, Mapping[str, Any]], *, new_optimizers: Collection[str] = ()) -> None:
        """Load what :meth:`state` returned.

        Args:
            new_optimizers: names of networks with another kind of optimiser than in the state. These optimisers start
                without a state.

        Raises:
            CheckpointError: a network is missing in the state or does not match it.
        """
        for name, network in self.networks.items():
            key = NETWORK_KEYS[name].network
            advice = f"Use the options of the checkpoint, or start a new run with path.pretrain_{key}."
            if name not in state:
                raise CheckpointError(f"the checkpoint has no {key}, which this model_type trains. {advice}")
            try:
                network.load_state(state[name], new_optimizer=name in new_optimizers)
            except (RuntimeError, ValueError) as error:
                details = textwrap.shorten(str(error), 300, placeholder=" ...")
                raise CheckpointError(f"{key} is not the network of the checkpoint. {advice} {details}") from error

    def _add_network(self, name: str, section: Mapping[str, Any]) -> TrainedNetwork:
        """Build ``network_g`` or ``network_d``, load its pretrained weights, and add its optimiser and schedule."""
        keys = NETWORK_KEYS[name]
        train = self.train
        optimizer = getattr(train, keys.optimiser)
        if optimizer is None:
            raise OptionError(f"{self.options.source}: train.{keys.optimiser} is missing")
        with located(f"{self.options.source}: {keys.network}"):
            network = build(ARCH_REGISTRY, section)
        is_generator = name == "net_g"
        network = self._start(name, network, section)
        with located(str(self.options.source)):
            trained = TrainedNetwork(
                network,
                self.execution if is_generator else dataclasses.replace(self.execution, kernels="torch"),
                self.ranks,
                optimizer=optimizer,
                schedule=build_schedule(train.scheduler, warmup_iter=train.warmup_iter),
                ema_decay=train.ema_decay if is_generator else 0.0,
                ema_warmup=train.ema_warmup,
                grad_clip=train.grad_clip,
                halt_on_nonfinite=train.on_nonfinite == "stop",
                find_unused_parameters=self.options.find_unused_parameters,
                weights_by_name=train.weights_by_name if is_generator else (),
                rebuild=lambda: cast(nn.Module, build(ARCH_REGISTRY, section)),
            )
        self._start_average(name, trained, section)
        self.networks[name] = trained
        count = sum(parameter.numel() for parameter in trained.bare.parameters())
        logger.info("%s: %s with %s parameters", name, section["type"], f"{count:,}")
        return trained

    def _pretrained(self, name: str) -> tuple[str | None, str, bool]:
        keys, path = NETWORK_KEYS[name], self.options.path
        return getattr(path, keys.weights), getattr(path, keys.param_key) or "params", getattr(path, keys.strict)

    def _start(self, name: str, network: nn.Module, section: Mapping[str, Any]) -> nn.Module:
        source, key, strict = self._pretrained(name)
        if source is not None:
            with located(f"{self.options.source}: path.{NETWORK_KEYS[name].weights}"):
                weights.load_into(network, source, param_key=key, strict=strict, section=section if strict else None)
        return network

    def _start_average(self, name: str, trained: TrainedNetwork, section: Mapping[str, Any]) -> None:
        """Start the EMA from ``params_ema`` of the pretrained file if it has them, else from the weights (BasicSR)."""
        source, _, strict = self._pretrained(name)
        if source is not None and trained.average is not None and weights.has_average(source):
            network = trained.average.network
            weights.load_into(
                network, source, param_key="params_ema", strict=strict, section=section if strict else None
            )

    def _build_losses(self) -> list[Criterion]:
        """Return every loss of the option file, on the run's device."""
        built = []
        for entry in loss_entries(msgspec.structs.asdict(self.train)):
            with located(f"{self.options.source}: {show_path(entry.where)}"):
                loss: nn.Module = build(LOSS_REGISTRY, entry.section)
            name = self.loss_prefix + entry.name
            built.append(Criterion(name, loss.to(self.execution.device), entry.role, entry.sharpened, entry.section))
        return built

    def _sharpened(self, criterion: Criterion) -> bool:
        """Return whether a loss compares with the sharpened GT."""
        return bool(criterion.sharpened)

    def _image_losses(self, batch: Batch, output: Tensor) -> dict[str, Tensor]:
        """Return the losses between the network's output and the GT, (B, 3, s*h, s*w) float32 in [0, 1], by name."""
        targets: dict[bool, Tensor] = {}
        losses: dict[str, Tensor] = {}
        network = self.networks["net_g"].bare
        by = f"network_g, {type(network).__name__}{defined_at(network)},"
        for criterion in self.criteria:
            if criterion.role != "image":
                continue
            sharpened = self._sharpened(criterion)
            if sharpened not in targets:
                targets[sharpened] = target_of(batch, sharpened=sharpened)
            losses = joined(losses, image_loss(criterion, output, targets[sharpened], by=by))
        return losses

    def _predict(self, network: TrainedNetwork, lq: Tensor) -> Tensor:
        """Run the forward pass in the run's precision and return float32 images, as the losses need them."""
        with self.execution.autocast():
            output = network.forward(lq)
        if not torch.is_tensor(output):
            raise OptionError(
                f"{type(network.bare).__name__}{defined_at(network.bare)} gives a {type(output).__name__}, not images "
                "(B, 3, H, W)"
            )
        return output.float()


def training_section(options: Options) -> TrainSection:
    """Return the ``train`` section.

    Raises:
        OptionError: it is missing.
    """
    if options.train is None:
        raise OptionError(f"{options.source}: the section train is missing; this option file can only test")
    return options.train


def image_loss(criterion: Criterion, prediction: Tensor, target: Tensor, *, by: str = "network_g") -> dict[str, Tensor]:
    """Return the weighted loss between prediction and target, (B, 3, h, w) float32 in [0, 1], by its name.

    A criterion that returns a pair, like BasicSR's ``PerceptualLoss``, gives a perceptual and a style loss; either may
    be None.

    Args:
        by: the network, for messages.

    Raises:
        OptionError: prediction and target differ in shape, or the loss is not one number.
    """
    if prediction.shape != target.shape:
        raise OptionError(
            f"{by} gives images of shape {tuple(prediction.shape)}, but the GT has shape {tuple(target.shape)} "
            "(images, channels, height, width): its scale or number of channels differs from the option file's"
        )
    value = criterion.module(prediction, target)
    if not isinstance(value, tuple):
        return {criterion.name: scalar(f"{criterion.name}{defined_at(criterion.module)}", value)}
    style = "l_style" if criterion.name in _PUBLISHED_PERCEPTUAL else f"{criterion.name}_style"
    parts = dict(zip((criterion.name, style), value, strict=True))
    return {name: loss for name, loss in parts.items() if loss is not None}


def joined(losses: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses of both mappings in one.

    Raises:
        OptionError: two losses have the same name.
    """
    twice = [name for name in more if name in losses]
    if twice:
        raise OptionError(f"two losses are called {twice[0]} in the log; set another `name` for one in train.losses")
    return {**losses, **more}


def target_of(batch: Batch, *, sharpened: bool) -> Tensor:
    """Return the GT (B, 3, H, W) in [0, 1] or the sharpened GT.

    A data set that degrades its images gives the sharpened GT as ``gt_usm``; the GT of other pairs is sharpened here.
    """
    if not sharpened:
        return image_of(batch, "gt")
    if "gt_usm" in batch:
        usm: Tensor = batch["gt_usm"]
        return usm
    return torch.stack([sharpen(image) for image in image_of(batch, "gt")])
