"""The harness of all benchmark scripts: their options, and a report of medians and spread as a table and as JSON.

A script defines its sides as functions without arguments, and calls :func:`compare` (safmn/evaluation/timing.py) and
:func:`report`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from safmn.evaluation.timing import Timing, compare
from safmn.system.console import say, table

__all__ = ["Timing", "argument_parser", "compare", "report", "use_threads"]


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
