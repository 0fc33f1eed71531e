"""The ranks agree on what ends a run early: a loss or gradient that is NaN or Inf, or a signal.

On the CPU the flags of an iteration are read at once. On a GPU this would make the host wait for the device in every
iteration. There the flags are copied in the background and read two iterations later, at the same iteration on every
rank. Until then the optimisers do not change the weights (``TrainedNetwork.update``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from safmn.runtime.distributed import Ranks

_DELAY_ON_GPU = 2  # iterations; long enough that the copy is done and the read does not wait


@dataclass(frozen=True)
class IterationFlags:
    """Flags of one iteration, the same on every rank. ``stop`` is the number of a signal, 0 for none.

    ``samples`` and ``losses`` are those of this rank: the names of its samples, and of its losses that are NaN or Inf.
    """

    iteration: int
    nonfinite: bool
    stop: int
    samples: list[str]
    losses: list[str]


class _Pending(NamedTuple):
    iteration: int
    flags: Tensor
    copied: torch.cuda.Event | None
    samples: list[str]
    losses: Mapping[str, Tensor]


def _names(batch: Mapping[str, Any]) -> list[str]:
    """Return a name for each sample of a batch: of its LQ or GT image, or its epoch and index."""
    paths = batch.get("lq_path", batch.get("gt_path"))
    if paths is not None:
        return [str(path) for path in paths]
    return [f"index {key.index} of epoch {key.epoch}" for key in batch.get("keys", [])]


class StepFlags:
    """Collects the flags of each iteration and returns them when they can be read without waiting."""

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        self.device = device
        self.ranks = ranks
        self._pending: deque[_Pending] = deque()

    def push(
        self,
        iteration: int,
        nonfinite: Tensor,
        *,
        stop: int,
        batches: Sequence[Any],
        losses: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> list[IterationFlags]:
        """Add one iteration; return the flags that can be read now, oldest first.

        Args:
            nonfinite: scalar on the device, 1.0 if something was NaN or Inf.
            stop: number of the signal that this rank received, 0 for none.
            batches: the micro-batches, whose samples are named in messages.
            losses: the losses of this rank by name.
        """
        flags = torch.stack([nonfinite, torch.full_like(nonfinite, float(stop))])  # (2,)
        samples = [name for batch in batches for name in _names(batch)]
        # before the exchange, which fails if another rank is lost
        self._pending.append(_Pending(iteration, flags, None, samples, losses))
        if self.ranks.distributed:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        if self.device.type != "cuda":
            return self._settle(keep=0)
        flags = flags.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending[-1] = _Pending(iteration, flags, event, samples, losses)
        return self._settle(keep=_DELAY_ON_GPU)

    def drain(self) -> list[IterationFlags]:
        """Return all flags that were not read yet; waits for the device."""
        return self._settle(keep=0)

    def _settle(self, keep: int) -> list[IterationFlags]:
        flags_read = []
        while len(self._pending) > keep:
            iteration, flags, event, samples, losses = self._pending.popleft()
            if event is not None:
                event.synchronize()
            nonfinite, stop = flags.tolist()
            bad = [name for name, loss in losses.items() if nonfinite and not bool(torch.isfinite(loss).all())]
            flags_read.append(IterationFlags(iteration, bool(nonfinite), int(stop), samples, bad))
        return flags_read
