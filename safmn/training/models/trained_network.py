"""A network together with its training state: optimiser, learning rate schedule, moving average, loss scale."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from safmn.archs.peers import in_form
from safmn.errors import OptionError
from safmn.kernels.cpu.training import NativeSAFMN
from safmn.kernels.gpu.training import GPUTrainedSAFMN
from safmn.optim.ema import MovingAverage
from safmn.optim.named_weights import Groups, can_stop
from safmn.optim.optimizers import build_optimizer, groups_on, state_of
from safmn.optim.schedules import Schedule
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution

logger = logging.getLogger(__name__)

# Keys of parameter groups that are not settings: the learning rate follows from the iteration; Muon counts its steps.
_STATE_IN_GROUPS = ("params", "lr", "steps")

Batch = Mapping[str, Any]
Losses = dict[str, Tensor]
T = TypeVar("T")


def accelerated(network: nn.Module, execution: Execution) -> Callable[..., Tensor]:
    """Return a forward function of ``network``: compiled, with our kernels, or the network itself.

    ``execution`` decides which. The function uses the parameters of ``network``.

    Raises:
        OptionError: there are no kernels for the network, or they cannot be built.
    """
    if execution.compile:
        compiled: Callable[..., Tensor] = torch.compile(network)
        return compiled
    if execution.kernels == "native" and execution.device.type == "cuda":
        return GPUTrainedSAFMN(network, execution.dtype)
    if execution.kernels == "native":
        return NativeSAFMN(network)
    return network


def _twin(network: nn.Module, rebuild: Callable[[], nn.Module] | None) -> nn.Module:
    """Return a copy of a network.

    A network that cannot be copied, for example with ``weight_norm``, which stores computed tensors, is built again and
    gets the same weights.
    """
    try:
        return copy.deepcopy(network)
    except RuntimeError:
        if rebuild is None:
            raise
    with torch.random.fork_rng():
        twin = rebuild()
    twin.load_state_dict(network.state_dict())
    return twin


def scalar(name: str, loss: Any) -> Tensor:
    """Return a loss with one element as a scalar.

    Raises:
        OptionError: it is not a tensor with one element; the message names the loss.
    """
    if not torch.is_tensor(loss) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if torch.is_tensor(loss) else type(loss).__name__
        raise OptionError(f"the loss {name} returns {found} instead of one number")
    return loss.reshape(())


class TrainedNetwork:
    """Runs the forward and backward pass and the update of one network.

    Args:
        network: the bare network; moved to the device and memory format of ``execution``.
        execution: device, precision, compilation and kernels.
        ranks: this process's place in the job; with several processes DistributedDataParallel wraps the network.
        optimizer: section of the option file (``train.optim_g``).
        schedule: learning rate as a function of iteration and base rate.
        ema_decay: decay of the moving average; 0 for none.
        ema_warmup: see ``MovingAverage``.
        grad_clip: largest gradient norm; ``None`` does not clip.
        halt_on_nonfinite: make no further update after the first NaN or Inf (``on_nonfinite: stop``).
        find_unused_parameters: see DistributedDataParallel.
        weights_by_name: see the key ``train.weights_by_name``.
        rebuild: builds the network again; used for the moving average of a network that cannot be copied.
    """

    def __init__(
        self,
        network: nn.Module,
        execution: Execution,
        ranks: Ranks,
        *,
        optimizer: Mapping[str, Any],
        schedule: Schedule,
        ema_decay: float = 0.0,
        ema_warmup: bool = False,
        grad_clip: float | None = None,
        halt_on_nonfinite: bool = True,
        find_unused_parameters: bool = False,
        rebuild: Callable[[], nn.Module] | None = None,
        weights_by_name: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.execution = execution
        self.ranks = ranks
        self.bare = execution.place(network).train()
        self.whole = in_form(self.bare, any_size=False)  # with the same weights, from RGB to RGB
        self.average: MovingAverage | None = None
        if ema_decay > 0:
            twin = execution.place(_twin(self.bare, rebuild))
            self.average = MovingAverage(self.bare, ema_decay, warmup=ema_warmup, average=twin)
        self._buffers = list(self.bare.buffers())
        self._buffers_before: list[Tensor] = []  # before the current step, since forward passes change buffers
        self.losses: Losses = {}  # of the current step: each averaged over its micro-batches, detached, on the device
        self._parts = 1
        self.moved = False  # whether the current step has made a change that cannot be undone
        self.parameters = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise OptionError(f"{type(network).__name__} has no weights to train")
        if weights_by_name and execution.cuda_graph:
            raise OptionError("train.weights_by_name works without train.cuda_graph only")
        self._groups = Groups(self.bare, weights_by_name) if weights_by_name else None
        self._stops_gradients = not ranks.distributed and can_stop(self.bare)  # DDP expects them in every step
        grouped = self._groups.for_optimizer(float(optimizer["lr"])) if self._groups else self.parameters
        self.optimizer = build_optimizer(optimizer, grouped, graph_on=self._graph_device)
        self.schedule = schedule
        # The current iteration, set together with its learning rate. A CUDA graph reads it from a tensor on the device.
        self.iteration: int | Tensor = 0 if self._graph_device is None else torch.zeros((), device=self._graph_device)
        self.grad_clip = grad_clip
        self.scaler = torch.amp.GradScaler(execution.device.type, enabled=execution.precision == "fp16")
        # The flag means NaN or Inf in a loss or gradient. A fused optimiser reads it on the GPU, so the host need
        # not wait. Otherwise the host reads the flag; on the CPU this costs nothing. The host also reads it in fp16:
        # there, a fused optimiser would read the loss scaler's flag, which covers gradients but not losses.
        fused = execution.device.type == "cuda" and all(group.get("fused") for group in self.optimizer.param_groups)
        self._flag_stays_on_device = execution.cuda_graph or (fused and not self.scaler.is_enabled())
        self._halt = halt_on_nonfinite
        self._halted = torch.zeros((), device=execution.device)
        self.forward: Callable[..., Tensor] = self._wrap(find_unused_parameters)

    def _wrap(self, find_unused_parameters: bool) -> Callable[..., Tensor]:
        forward = accelerated(self.whole, self.execution)
        if not self.ranks.distributed:
            return forward
        device_ids = [self.ranks.local_rank] if self.execution.device.type == "cuda" else None
        return DistributedDataParallel(
            forward,
            device_ids=device_ids,
            find_unused_parameters=find_unused_parameters,
            gradient_as_bucket_view=True,
        )

    @property
    def _graph_device(self) -> torch.device | None:
        return self.execution.device if self.execution.cuda_graph else None

    @property
    def inference(self) -> nn.Module:
        """The network to validate, from RGB to RGB: the moving average if there is one, else the bare network."""
        return in_form(self.average.network if self.average else self.bare)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_learning_rate(self, iteration: int) -> None:
        """Begin an iteration (counted from 1), and set its learning rate in every parameter group."""
        self.moved = self._graph_device is not None  # a CUDA graph may change the weights at any point of the step
        if not self.moved:
            self._buffers_before = []
        if isinstance(self.iteration, Tensor):
            self.iteration.fill_(iteration)
        else:
            self.iteration = iteration
        if self._groups:
            self._groups.begin(iteration, without_gradients=self._stops_gradients)
        for group in self.optimizer.param_groups:
            if "initial_lr" not in group:
                group["initial_lr"] = float(group["lr"])  # only once, since float() of a GPU tensor waits for the GPU
            rate = self.schedule(iteration, group["initial_lr"])
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate

    def micro_batches(self, batches: Iterable[T], *, parts: int) -> Iterator[T]:
        """Yield the micro-batches of one step. The loop's body runs :meth:`forward` and :meth:`backward` on each.

        Args:
            parts: divisor of the sum over the micro-batches, usually their number.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self._buffers_before = self.buffers()
        self._parts, self.losses = parts, {}
        batches = list(batches)
        for number, batch in enumerate(batches):
            is_early = isinstance(self.forward, DistributedDataParallel) and number < len(batches) - 1
            with self.forward.no_sync() if is_early else contextlib.nullcontext():  # type: ignore[attr-defined]
                yield batch  # ranks exchange gradients in the backward pass of the last one

    def backward(self, losses: Losses) -> None:
        """Add the gradients of one micro-batch's weighted losses, and the losses to :attr:`losses`.

        Raises:
            OptionError: a loss is not a single number, or no loss depends on the weights; names it.
        """
        losses = {name: scalar(name, loss) for name, loss in losses.items()}
        total = torch.stack(list(losses.values())).sum() / self._parts
        if not total.requires_grad:
            raise OptionError(
                f"no loss ({', '.join(losses)}) depends on the network's weights: it was computed without gradients, "
                "or from detached tensors"
            )
        self.scaler.scale(total).backward()
        for name, loss in losses.items():
            share = loss.detach() / self._parts
            self.losses[name] = self.losses[name] + share if name in self.losses else share

    def update(self) -> Tensor:
        """Clip the gradients, step, and update the moving average, unless a loss or gradient is NaN or Inf.

        In fp16 the loss scaler handles gradients that overflow, so only the losses are checked.

        Returns:
            Scalar on the device, the same on every rank: 1.0 if nothing was updated because of NaN or Inf, else 0.0.
        """
        if self._groups:
            for parameter in self._groups.frozen():
                parameter.grad = None  # the optimiser skips it, also its weight decay
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        watched = [*self.losses.values()] if self.scaler.is_enabled() else [*self.losses.values(), norm]
        bad = (~torch.isfinite(torch.stack([value.detach().float() for value in watched]))).any().float()
        if self.ranks.distributed:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        if self._halt:  # in-place, because a CUDA graph refers to this tensor
            bad = self._halted.copy_(torch.maximum(self._halted, bad)).clone()
        if self.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.grad_clip, norm)
        self.moved = True
        if self._flag_stays_on_device or bad:
            self.put_back(self._buffers_before, bad)
        if not self._flag_stays_on_device and bad:
            if self.scaler.is_enabled():
                scale = self.scaler.state_dict()
                self.scaler.update()
                if self._halt:  # the run ends with the state before this step, including the loss scale
                    self.scaler.load_state_dict(scale)
            return bad
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            if self._flag_stays_on_device:
                self.optimizer.found_inf = bad  # type: ignore[attr-defined]
            self.optimizer.step()
        if self.average:
            self.average.update(self.iteration, skip=bad if self._flag_stays_on_device else None)
        return bad

    def buffers(self) -> list[Tensor]:
        """Return copies of the buffers, which forward passes change (batch normalisation, spectral norm)."""
        return [buffer.clone() for buffer in self._buffers]

    def put_back(self, buffers: Sequence[Tensor], bad: Tensor) -> None:
        """Restore the buffers that :meth:`buffers` returned if ``bad``, a scalar on the device, is not 0."""
        for buffer, before in zip(self._buffers, buffers, strict=True):
            buffer.copy_(torch.where(bad > 0, before, buffer))

    def abandon_step(self) -> None:
        """Restore the buffers after a step that failed before :attr:`moved` became true."""
        if self._buffers_before:
            self.put_back(self._buffers_before, torch.ones((), device=self.execution.device))

    def average_alone(self) -> None:
        """Update the moving average without an optimiser step."""
        self.moved = True
        if self.average:
            self.average.update(self.iteration)

    def state(self) -> dict[str, Any]:
        """Return the state dicts ``params`` and ``optimizer``, and, if they exist, ``params_ema`` and ``scaler``."""
        state: dict[str, Any] = {"params": self.bare.state_dict(), "optimizer": state_of(self.optimizer)}
        if self.average:
            state["params_ema"] = self.average.network.state_dict()
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state(self, state: Mapping[str, Any], *, new_optimizer: bool = False) -> None:
        """Load what :meth:`state` returned.

        A moving average or loss scale that is missing there starts from the loaded weights or its initial value, with a
        warning.

        Args:
            new_optimizer: the state has another kind of optimiser; ours starts without it, with a warning.

        Raises:
            RuntimeError, ValueError: from torch, if the state is that of another network.
        """
        self.bare.load_state_dict(state["params"])
        if new_optimizer:
            logger.warning(
                "the checkpoint has another optimiser: %s starts without its state", type(self.optimizer).__name__
            )
        else:
            self.load_optimizer(state["optimizer"])
        if self.average:
            if "params_ema" not in state:
                logger.warning("the checkpoint has no moving average: it starts from the weights")
            self.average.network.load_state_dict(state.get("params_ema", state["params"]))
        if self.scaler.is_enabled():
            if "scaler" in state:
                self.scaler.load_state_dict(state["scaler"])
            else:
                logger.warning("the checkpoint has no loss scale: that of fp16 starts at its initial value")

    def _is_state(self, key: str) -> bool:
        """Return whether a key of the optimiser's groups is part of its state, not a setting of this run.

        A foreign optimiser may keep any state in its groups; the arguments of its constructor are settings.
        """
        kind = type(self.optimizer)
        if key in _STATE_IN_GROUPS or kind.__module__.startswith(("torch.", "safmn.")):
            return key in _STATE_IN_GROUPS
        return key != "initial_lr" and key not in inspect.signature(kind).parameters

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Load the steps and moments of an optimiser's state dict; the settings stay those of this run.

        Fused optimisers ignore strides, so each moment must have the memory format of its parameter. Moments from a
        file are contiguous, but parameters may be channels_last.
        """
        groups = []
        for saved, group in zip(state["param_groups"], self.optimizer.param_groups, strict=True):
            settings = {key: value for key, value in group.items() if not self._is_state(key)}
            groups.append({**saved, **settings, "initial_lr": group.get("initial_lr", float(group["lr"]))})
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        if self._graph_device is not None:
            groups_on(self._graph_device, self.optimizer)
        for parameter, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)
