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
    rounds: int | Mapping[str, int] = 7,
    warmup: int = 2,
    synchronize: Callable[[], object] | None = None,
    on_call: Callable[[], object] | None = None,
    on_time: Callable[[str, float], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the sides in turn, and return the timing of each by name.

    Args:
        sides: functions to time, by name.
        rounds: timed rounds, each of which calls every side once; or how often each side is timed, by name.
        warmup: rounds before the timed ones.
        synchronize: called before and after each call; ``torch.cuda.synchronize`` on a GPU.
        on_call: called after each call, outside of the measured time, for a progress bar.
        on_time: called with the name and the seconds of each timed call.
        clock: seconds; ``time.process_time`` for the CPU time of this process, on a busy machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    wanted = {name: warmup + (rounds if isinstance(rounds, int) else rounds[name]) for name in sides}
    wait = synchronize or (lambda: None)
    for number in range(max(wanted.values(), default=0)):
        for name, side in sides.items():
            if number >= wanted[name]:
                continue
            wait()
            start = clock()
            side()
            wait()
            spent = clock() - start
            if number >= warmup:
                seconds[name].append(spent)
                if on_time is not None:
                    on_time(name, spent)
            if on_call is not None:
                on_call()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
