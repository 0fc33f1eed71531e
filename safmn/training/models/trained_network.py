"""A network together with everything that changes while it is trained: weights, optimiser, average, loss scale."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from safmn.kernels.cpu.training import NativeSAFMN
from safmn.kernels.gpu.training import GPUTrainedSAFMN
from safmn.optim.ema import MovingAverage
from safmn.optim.optimizers import build_optimizer, groups_on, state_of
from safmn.optim.schedules import Schedule
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution

logger = logging.getLogger(__name__)

_STATE_IN_GROUPS = ("params", "lr", "steps")  # what is no setting: lr follows from the iteration, Muon counts its steps

Batch = Mapping[str, Any]
Losses = dict[str, Tensor]
T = TypeVar("T")


def accelerated(network: nn.Module, execution: Execution) -> Callable[..., Tensor]:
    """The forward of ``network``, compiled or by our kernels as ``execution`` says; it shares the parameters.

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
    """A copy of a network; built anew where it cannot be copied (``weight_norm`` holds tensors that were computed)."""
    try:
        return copy.deepcopy(network)
    except RuntimeError:
        if rebuild is None:
            raise
    with torch.random.fork_rng():
        twin = rebuild()
    twin.load_state_dict(network.state_dict())
    return twin


def _scalar(name: str, loss: Any) -> Tensor:
    """A loss of one element as a scalar.

    Raises:
        TypeError: it is not one; names it.
    """
    if not torch.is_tensor(loss) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if torch.is_tensor(loss) else type(loss).__name__
        raise TypeError(f"the loss {name} gives {found}, where one number is needed")
    return loss.reshape(())


class TrainedNetwork:
    """Forward, backward and update of one network.

    Args:
        network: the bare network; moved to the device and memory format of ``execution``.
        execution: device, precision, compilation.
        ranks: place in the job; more than one process wraps the forward in DistributedDataParallel.
        optimizer: section of the option file (``train.optim_g``).
        schedule: learning rate as a function of (iteration, base rate).
        ema_decay: decay of the moving average; 0 for none.
        ema_warmup: see ``MovingAverage``.
        grad_clip: largest gradient norm; ``None`` does not clip.
        halt_on_nonfinite: after the first NaN or Inf change nothing any more (``on_nonfinite: stop``).
        find_unused_parameters: as in DistributedDataParallel.
        rebuild: builds the network anew, for the average of one that cannot be copied.
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
    ) -> None:
        self.execution = execution
        self.ranks = ranks
        self.bare = execution.place(network).train()
        self.average: MovingAverage | None = None
        if ema_decay > 0:
            twin = execution.place(_twin(self.bare, rebuild))
            self.average = MovingAverage(self.bare, ema_decay, warmup=ema_warmup, average=twin)
        self._buffers = list(self.bare.buffers())
        self._buffers_before: list[Tensor] = []  # the step under way: forward passes move them (batch normalisation)
        self.losses: Losses = {}  # of the current step: each averaged over its micro-batches, detached, on the device
        self._parts = 1
        self.moved = False  # whether the step under way has changed anything that stays
        self.parameters = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(optimizer, self.parameters, graph_on=self._graph_device)
        self.schedule = schedule
        # Of the step under way, set with its learning rate; a tensor on the device where a CUDA graph reads it.
        self.iteration: int | Tensor = 0 if self._graph_device is None else torch.zeros((), device=self._graph_device)
        self.grad_clip = grad_clip
        self.scaler = torch.amp.GradScaler(execution.device.type, enabled=execution.precision == "fp16")
        # A fused optimiser on a GPU reads there whether to step; elsewhere the host looks, on the CPU at no cost. In
        # fp16 it would read the loss scale's own flag, which knows the gradients alone.
        fused = execution.device.type == "cuda" and all(group.get("fused") for group in self.optimizer.param_groups)
        self._flag_stays_on_device = execution.cuda_graph or (fused and not self.scaler.is_enabled())
        self._halt = halt_on_nonfinite
        self._halted = torch.zeros((), device=execution.device)
        self.forward: Callable[..., Tensor] = self._wrap(find_unused_parameters)

    def _wrap(self, find_unused_parameters: bool) -> Callable[..., Tensor]:
        forward = accelerated(self.bare, self.execution)
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
        """The network to validate and to ship: the average where there is one."""
        return self.average.network if self.average else self.bare

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_learning_rate(self, iteration: int) -> None:
        """Set the rate of this iteration (counted from 1), which begins, in every parameter group."""
        self.moved = self._graph_device is not None  # a graph moves the weights without being seen
        if not self.moved:
            self._buffers_before = []
        if isinstance(self.iteration, Tensor):
            self.iteration.fill_(iteration)
        else:
            self.iteration = iteration
        for group in self.optimizer.param_groups:
            if "initial_lr" not in group:
                group["initial_lr"] = float(group["lr"])  # once: of a tensor on a GPU it waits for all that runs there
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
            with self._exchange_gradients(last=number == len(batches) - 1):
                yield batch

    def backward(self, losses: Losses) -> None:
        """Add the gradients of one micro-batch's weighted losses, and the losses to :attr:`losses`.

        Raises:
            TypeError: a loss is not a single number; names it.
        """
        losses = {name: _scalar(name, loss) for name, loss in losses.items()}
        total = torch.stack(list(losses.values())).sum() / self._parts
        self.scaler.scale(total).backward()
        for name, loss in losses.items():
            share = loss.detach() / self._parts
            self.losses[name] = self.losses[name] + share if name in self.losses else share

    def _exchange_gradients(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """DDP exchanges gradients once for each step: with the last micro-batch."""
        if isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return contextlib.nullcontext()

    def update(self) -> Tensor:
        """Clip, step and average, unless a loss or gradient is NaN or Inf: then nothing moves.

        Returns:
            Scalar on the device, 1.0 where something was not finite, on every rank alike. In fp16 an overflow of the
            gradients is the loss scale's business and only the losses count.
        """
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        watched = [*self.losses.values()] if self.scaler.is_enabled() else [*self.losses.values(), norm]
        bad = (~torch.isfinite(torch.stack([value.detach().float() for value in watched]))).any().float()
        if self.ranks.distributed:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        if self._halt:  # in place: a CUDA graph knows this tensor alone
            bad = self._halted.copy_(torch.maximum(self._halted, bad)).clone()
        if self.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.grad_clip, norm)
        self._step(bad)
        return bad

    def buffers(self) -> list[Tensor]:
        """Copies of what forward passes move (batch normalisation, spectral norms)."""
        return [buffer.clone() for buffer in self._buffers]

    def put_back(self, buffers: Sequence[Tensor], bad: Tensor) -> None:
        """Put back what :meth:`buffers` gave where ``bad`` is not 0."""
        for buffer, before in zip(self._buffers, buffers, strict=True):
            buffer.copy_(torch.where(bad > 0, before, buffer))

    def abandon_step(self) -> None:
        """Undo what a step that failed before :attr:`moved` has changed."""
        if self._buffers_before:
            self.put_back(self._buffers_before, torch.ones((), device=self.execution.device))

    def average_alone(self) -> None:
        """Move the average on, without a step."""
        self.moved = True
        if self.average:
            self.average.update(self.iteration)

    def _step(self, bad: Tensor) -> None:
        self.moved = True
        if self._flag_stays_on_device or bad:
            self.put_back(self._buffers_before, bad)
        if not self._flag_stays_on_device and bad:
            if self.scaler.is_enabled():
                scale = self.scaler.state_dict()
                self.scaler.update()
                if self._halt:  # the run stops before this step: it is as if it had not been tried
                    self.scaler.load_state_dict(scale)
            return
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            if self._flag_stays_on_device:
                self.optimizer.found_inf = bad  # type: ignore[attr-defined]
            self.optimizer.step()
        if self.average:
            self.average.update(self.iteration, skip=bad if self._flag_stays_on_device else None)

    def state(self) -> dict[str, Any]:
        """All that changes, as state dicts: ``params``, ``optimizer``; where there are, ``params_ema``, ``scaler``."""
        state: dict[str, Any] = {"params": self.bare.state_dict(), "optimizer": state_of(self.optimizer)}
        if self.average:
            state["params_ema"] = self.average.network.state_dict()
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state(self, state: Mapping[str, Any], *, new_optimizer: bool = False) -> None:
        """Take back what :meth:`state` returned. An average or a loss scale that it lacks starts here, with a warning.

        Args:
            new_optimizer: the state is that of another kind of optimiser: this one starts without it, with a warning.

        Raises:
            RuntimeError, ValueError: torch's, where the state is that of another network.
        """
        self.bare.load_state_dict(state["params"])
        if new_optimizer:
            logger.warning(
                "the optimiser is another than the checkpoint's: %s starts anew", type(self.optimizer).__name__
            )
        else:
            self.load_optimizer(state["optimizer"])
        if self.average:
            if "params_ema" not in state:
                logger.warning("the checkpoint holds no moving average: it starts from the weights")
            self.average.network.load_state_dict(state.get("params_ema", state["params"]))
        if self.scaler.is_enabled():
            if "scaler" in state:
                self.scaler.load_state_dict(state["scaler"])
            else:
                logger.warning("the checkpoint holds no loss scale: that of fp16 starts anew")

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Take back an optimiser's state dict: what it counted and averaged. Its settings are those of this run.

        Fused optimisers walk through memory without looking at strides, so each moment must lie in memory as its
        parameter does; a state that comes from a file is contiguous, a parameter here may be channels_last.
        """
        groups = []
        for saved, group in zip(state["param_groups"], self.optimizer.param_groups, strict=True):
            settings = {key: value for key, value in group.items() if key not in _STATE_IN_GROUPS}
            groups.append({**saved, **settings, "initial_lr": group.get("initial_lr", float(group["lr"]))})
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        if self._graph_device is not None:
            groups_on(self._graph_device, self.optimizer)
        for parameter, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)
