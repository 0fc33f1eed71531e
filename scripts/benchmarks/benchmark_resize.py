"""MATLAB's bicubic: BasicSR's imresize against ours, on one 2040x1356 image (the usual size in DIV2K).

    python scripts/benchmarks/benchmark_resize.py [--scales 4 2 3] [--up] [--grey] [--image FILE]

BasicSR's function gets float32 in [0, 1], as it needs, and its result is rounded once at the end, so its pixels differ
from MATLAB's. Ours takes and returns uint8, like MATLAB. The script also prints the share of samples that differ.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmark_harness import argument_parser, compare, report, use_threads
from safmn.imaging import imresize, read_rgb
from safmn.system.console import say

WIDTH, HEIGHT = 2040, 1356


def example(path: Path | None) -> np.ndarray:
    """Return the image of a file, resized, or an image of gradients and noise; uint8 (HEIGHT, WIDTH, 3)."""
    if path is not None:
        return imresize(read_rgb(path), output_shape=(HEIGHT, WIDTH))
    noise = np.random.default_rng(0).normal(0, 20, (HEIGHT, WIDTH, 3))
    ramps = np.linspace(0, 255, HEIGHT)[:, None, None] * np.linspace(0.2, 1, WIDTH)[:, None]
    return np.clip(ramps + noise, 0, 255).astype(np.uint8)


def main() -> None:
    """Compare at each scale. In the JSON line, ``ratio`` is the smallest speed-up."""
    parser = argument_parser(__doc__)
    parser.add_argument("--scales", type=int, nargs="+", default=[4, 2, 3])
    parser.add_argument("--up", action="store_true", help="enlarge instead of shrinking")
    parser.add_argument("--grey", action="store_true", help="one channel")
    parser.add_argument("--image", type=Path, help="an image to use, resized to 2040x1356")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    from basicsr.utils.matlab_functions import imresize as basicsr_imresize  # importing safmn makes it importable

    image = example(arguments.image)
    if arguments.grey:
        image = np.ascontiguousarray(image[..., 0])
    as_float = image.astype(np.float32) / 255
    ratios = {}
    for factor in arguments.scales:
        scale = float(factor) if arguments.up else 1 / factor
        theirs = np.clip(np.round(basicsr_imresize(as_float, scale) * 255), 0, 255).astype(np.uint8)
        differ = float(np.mean(theirs != imresize(image, scale)))
        timings = compare(
            {"BasicSR": lambda s=scale: basicsr_imresize(as_float, s), "ours": lambda s=scale: imresize(image, s)},
            rounds=arguments.rounds,
            warmup=arguments.warmup,
        )
        title = (
            f"imresize {WIDTH}x{HEIGHT}, scale {'' if arguments.up else '1/'}{factor}; {differ:.1%} of samples differ"
        )
        ratios[f"x{factor}"] = report(title, timings, baseline="BasicSR")["ratio"]
    if arguments.json:
        say(json.dumps({"ratio": min(ratios.values()), "ratios": ratios, "up": arguments.up, "grey": arguments.grey}))


if __name__ == "__main__":
    main()
