"""Agreement of the ranks on what ends a run early: a loss that is not finite, or a signal.

On the CPU the flags of an iteration are read at once. On a GPU reading them would make the host wait for the device
in every iteration, so they are copied in the background and read a fixed number of iterations later, the same on every
rank; until then the optimisers themselves refuse to move (``TrainedNetwork.update``).
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
class Verdict:
    """Flags of one iteration, as every rank sees them. ``stop`` is a signal's number, 0 where none arrived."""

    iteration: int
    nonfinite: bool
    stop: int
    samples: list[str]


class Watch:
    """Collects the flags of each iteration and returns verdicts when they can be read without waiting."""

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        self.device = device
        self.ranks = ranks
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None, list[str]]] = deque()

    def push(self, iteration: int, nonfinite: Tensor, *, stop: int, batches: Sequence[Any]) -> list[Verdict]:
        """Note one iteration; returns the verdicts that are due, oldest first."""
        flags = torch.stack([nonfinite, torch.full_like(nonfinite, float(stop))])  # (2,)
        samples = [str(path) for batch in batches for path in batch.get("lq_path", batch.get("keys", []))]
        self._pending.append((iteration, flags, None, samples))  # first: it stays where another rank is lost
        if self.ranks.distributed:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        if self.device.type != "cuda":
            return self._settle(keep=0)
        flags = flags.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending[-1] = (iteration, flags, event, samples)
        return self._settle(keep=_DELAY_ON_GPU)

    def drain(self) -> list[Verdict]:
        """All verdicts still pending; waits for the device."""
        return self._settle(keep=0)

    def _settle(self, keep: int) -> list[Verdict]:
        verdicts = []
        while len(self._pending) > keep:
            iteration, flags, event, samples = self._pending.popleft()
            if event is not None:
                event.synchronize()
            nonfinite, stop = flags.tolist()
            verdicts.append(Verdict(iteration, bool(nonfinite), int(stop), samples))
        return verdicts
