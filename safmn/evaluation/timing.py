"""Time several functions fairly: in turn, with medians and spread.

The speed of a machine fluctuates and drifts, so the sides are interleaved (A B A B ...) in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one side, in the order of measurement."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(max - min) / median, which shows how much the measurements of this side fluctuate."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def compare(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warmup: int = 2,
    synchronize: Callable[[], object] | None = None,
    on_call: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time the sides in turn, and return the timing of each by name.

    Args:
        sides: functions to time, by name.
        rounds: timed rounds; each calls every side once.
        warmup: rounds before the timed ones.
        synchronize: called before and after each call; ``torch.cuda.synchronize`` on a GPU.
        on_call: called after each call, outside of the measured time, for a progress bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    wait = synchronize or (lambda: None)
    for number in range(warmup + rounds):
        for name, side in sides.items():
            wait()
            start = time.perf_counter()
            side()
            wait()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
            if on_call is not None:
                on_call()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
