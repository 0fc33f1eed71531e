"""The ranks agree on what ends a run early: a loss or gradient that is NaN or Inf, or a signal.

On the CPU the flags of an iteration are read at once. On a GPU this would make the host wait for the device in every
iteration. There the flags are copied in the background and read two iterations later, at the same iteration on every
rank. Until then the optimisers do not change the weights (``TrainedNetwork.update``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from safmn.runtime.distributed import Ranks

_DELAY_ON_GPU = 2  # iterations; long enough that the copy is done and the read does not wait


@dataclass(frozen=True)
class IterationFlags:
    """Flags of one iteration, the same on every rank. ``stop`` is the number of a signal, 0 for none."""

    iteration: int
    nonfinite: bool
    stop: int
    samples: list[str]


class StepFlags:
    """Collects the flags of each iteration and returns them when they can be read without waiting."""

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        self.device = device
        self.ranks = ranks
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None, list[str]]] = deque()

    def push(self, iteration: int, nonfinite: Tensor, *, stop: int, batches: Sequence[Any]) -> list[IterationFlags]:
        """Add one iteration; return the flags that can be read now, oldest first.

        Args:
            nonfinite: scalar on the device, 1.0 if something was NaN or Inf.
            stop: number of the signal that this rank received, 0 for none.
            batches: the micro-batches, whose samples are named in messages.
        """
        flags = torch.stack([nonfinite, torch.full_like(nonfinite, float(stop))])  # (2,)
        samples = [str(path) for batch in batches for path in batch.get("lq_path", batch.get("keys", []))]
        self._pending.append(
            (iteration, flags, None, samples)
        )  # before the exchange, which fails if another rank is lost
        if self.ranks.distributed:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        if self.device.type != "cuda":
            return self._settle(keep=0)
        flags = flags.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending[-1] = (iteration, flags, event, samples)
        return self._settle(keep=_DELAY_ON_GPU)

    def drain(self) -> list[IterationFlags]:
        """Return all flags that were not read yet; waits for the device."""
        return self._settle(keep=0)

    def _settle(self, keep: int) -> list[IterationFlags]:
        flags_read = []
        while len(self._pending) > keep:
            iteration, flags, event, samples = self._pending.popleft()
            if event is not None:
                event.synchronize()
            nonfinite, stop = flags.tolist()
            flags_read.append(IterationFlags(iteration, bool(nonfinite), int(stop), samples))
        return flags_read
