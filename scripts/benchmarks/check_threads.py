"""Call one upscaler from many threads and count the wrong results.

    python scripts/benchmarks/check_threads.py                # every installed back end, 60 calls, 8 threads
    python scripts/benchmarks/check_threads.py --backends openvino --tile 32 --calls 120

The images have different sizes, and there is no warm-up. The expected results come from another upscaler with back end
"eager", which runs before, one image after the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from safmn import Upscaler
from safmn.inference.backends import available_backends
from safmn.system.console import say, table

SIZES = ((40, 56), (48, 48), (33, 70), (64, 40))


def images(count: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Return different images of noise and stripes, uint8 (height, width, 3)."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(count):
        height, width = SIZES[index % len(SIZES)]
        stripes = 90 * np.sin(np.arange(width) / (2 + index % 7))[None, :, None]
        noise = generator.integers(-30, 31, (height, width, 3))
        made.append(np.clip(128 + stripes + noise, 0, 255).astype(np.uint8))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each back end, and return the exit status: 1 if a result was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = [name for name, problem in available_backends("cpu").items() if problem is None]
    parser.add_argument("--backends", nargs="+", default=installed, choices=installed)
    parser.add_argument("--weights", default="safmn-x2")
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--tile", type=int, default=0, help="as in Upscaler; 0: no tiles")
    options = parser.parse_args(arguments)
    shown = images(options.calls)
    upscaler = Upscaler(options.weights, device="cpu", backend="eager", tile=options.tile)
    expected = [upscaler(image).astype(int) for image in shown]
    rows, status = [], 0
    for name in options.backends:
        right, worst, failed, seconds = check(name, options, shown, expected)
        rows.append([name, f"{right} of {options.calls}", f"{worst}", f"{failed or '-'}", f"{seconds:.1f}"])
        status |= right < options.calls
    say(table(["back end", "right", "largest error (levels)", "failed with", "seconds"], rows))
    return status


def check(
    name: str, options: argparse.Namespace, shown: list[Any], expected: list[Any]
) -> tuple[int, int, str | None, float]:
    """Check one back end.

    Returns:
        The number of right results (at most one level off), the largest error in levels, the message of the first
        failure or None, and the seconds that all calls took.
    """
    upscaler = Upscaler(options.weights, device="cpu", backend=name, tile=options.tile)

    def error(index: int) -> int | str:
        try:
            return int(np.abs(upscaler(shown[index]).astype(int) - expected[index]).max())
        except Exception as problem:  # any failure counts as a wrong result
            return f"{type(problem).__name__}: {str(problem).splitlines()[0][:60]}"

    start = time.perf_counter()
    with ThreadPoolExecutor(options.threads) as pool:
        errors = list(pool.map(error, range(len(shown))))
    levels = [value for value in errors if isinstance(value, int)]
    failures = [value for value in errors if isinstance(value, str)]
    seconds = time.perf_counter() - start
    return sum(value <= 1 for value in levels), max(levels, default=0), next(iter(failures), None), seconds


if __name__ == "__main__":
    raise SystemExit(main())
