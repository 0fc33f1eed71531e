"""PSNR and SSIM of a 1280x720 pair: BasicSR's functions against ours, on RGB and on the Y channel.

    python scripts/benchmarks/benchmark_metrics.py [--rounds 7] [--threads 2] [--json]

In the JSON line, ``ratio`` is the speed-up of SSIM on RGB, and ``speedups`` has all of them.
"""

from __future__ import annotations

import cv2
import numpy as np

from benchmark_harness import argument_parser, compare, report, use_threads
from safmn import metrics


def pair(height: int = 720, width: int = 1280) -> tuple[np.ndarray, np.ndarray]:
    """Return two similar BGR images with structure at several sizes, uint8 (H, W, 3) each."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3))
    for cell in (2, 8, 32, 128):
        noise = rng.normal(0, 20, (height // cell + 1, width // cell + 1, 3))
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    degraded = cv2.GaussianBlur(image, (0, 0), 1.0)
    a, b = (np.clip(each + 128, 0, 255).astype(np.uint8) for each in (image, degraded))
    return a, b


def main() -> None:
    """Run all comparisons."""
    from basicsr.metrics import psnr_ssim

    arguments = argument_parser(__doc__).parse_args()
    use_threads(arguments.threads)
    a, b = pair()
    speedups = {}
    for y in (True, False):
        for name in ("calculate_psnr", "calculate_ssim"):
            sides = {"BasicSR": getattr(psnr_ssim, name), "ours": getattr(metrics, name)}
            values = {side: function(a, b, crop_border=4, test_y_channel=y) for side, function in sides.items()}
            timings = compare(
                {s: lambda f=f, y=y: f(a, b, crop_border=4, test_y_channel=y) for s, f in sides.items()},  # type: ignore[misc]
                rounds=arguments.rounds,
                warmup=arguments.warmup,
            )
            title = f"{name}, 1280x720, {'Y' if y else 'RGB'}"
            difference = abs(values["BasicSR"] - values["ours"])
            speedups[title] = round(timings["BasicSR"].median / timings["ours"].median, 2)
            last = name == "calculate_ssim" and not y
            report(
                f"{title} (values differ by {difference:.1e})",
                timings,
                baseline="BasicSR",
                extra={side: {"value": f"{value:.6f}"} for side, value in values.items()},
                json_line=arguments.json and last,
                facts={"speedups": speedups} if last else None,
            )


if __name__ == "__main__":
    main()
