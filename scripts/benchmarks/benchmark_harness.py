"""The harness of all benchmark scripts: times sides in turn, and prints medians and spread as a table and as JSON.

The speed of a machine fluctuates and drifts, so the sides are interleaved (A B A B ...) in one process and compared as
ratios of medians. A script defines its sides as functions without arguments, and calls :func:`compare` and
:func:`report`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from safmn.system.console import say, table


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


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks: --rounds, --warmup, --threads, --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; each runs every side once")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before the timed ones")
    parser.add_argument("--threads", type=int, default=None, help="threads for torch and OpenCV (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    return parser


def use_threads(threads: int | None) -> None:
    """Set the number of threads of torch and OpenCV; ``None`` changes nothing."""
    if threads is not None:
        import cv2
        import torch

        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)


def compare(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warmup: int = 2,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time the sides in turn, and return the timing of each by name.

    Args:
        sides: functions to time, by name.
        rounds: timed rounds; each calls every side once.
        warmup: rounds before the timed ones.
        synchronize: called before and after each call; ``torch.cuda.synchronize`` on a GPU.
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
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def report(
    title: str,
    timings: Mapping[str, Timing],
    *,
    baseline: str,
    json_line: bool = False,
    extra: Mapping[str, Mapping[str, object]] | None = None,
    facts: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Print a table (median ms, spread, speed-up over ``baseline``) and, with ``json_line``, one JSON line at the end.

    Args:
        extra: additional columns for each side, ``{side: {column: value}}``.
        facts: additional keys for the JSON line.

    Returns:
        The content of the JSON line: ``ratio`` is the speed-up of the last side, ``ratios`` has that of every side.
    """
    ratios = {name: timings[baseline].median / timing.median for name, timing in timings.items()}
    columns = sorted({column for row in (extra or {}).values() for column in row})
    rows = [
        [name, f"{t.median * 1e3:.2f}", f"{t.spread:.0%}", f"{ratios[name]:.2f}x"]
        + [(extra or {}).get(name, {}).get(column, "") for column in columns]
        for name, t in timings.items()
    ]
    say(f"\n{title}\n")
    say(table(["side", "median ms", "spread", f"speed-up over {baseline}", *columns], rows))
    summary: dict[str, object] = {
        "title": title,
        "ratio": round(ratios[list(timings)[-1]], 3),
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "median_ms": {name: round(t.median * 1e3, 3) for name, t in timings.items()},
        "spread": {name: round(t.spread, 3) for name, t in timings.items()},
        **(facts or {}),
    }
    if json_line:
        say(json.dumps(summary))
    return summary
