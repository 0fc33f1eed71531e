"""Measure the weights that ``safmn upscale`` takes by itself: ``scripts/zoo/measure_choice.py FOLDER``.

Of each photograph, the middle 256x256 pixels are shrunk by two, as they are and then as JPEG files of several
qualities, as images that were such files before, and with noise; so are drawings of screens and pages, as screenshots.
The table has the mean PSNR on RGB of the weights for clean images, of those for photographs, and of the chosen ones;
how much the choice loses to the better of the two weights; and to the better one of each image. The chosen weights must
not lose more than ``--most`` dB to the better of the two.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.data.drawing import KINDS
from safmn.errors import exit_status
from safmn.imaging import imresize, list_images, read_rgb, to_tensor, to_uint8
from safmn.inference.choices import CLEAN_WEIGHTS, REAL_WEIGHTS
from safmn.inference.condition import examine, jpeg_quality, suitable
from safmn.prepare.parallel import progress
from safmn.system.console import say
from safmn.weights import load_network

SIDE, SCALE = 256, 2
QUALITIES = (95, 90, 85, 80, 70, 60, 50, 30)
NOISE = (1, 2, 3, 5, 10, 20)  # standard deviation, levels
SCREENS = ("screen", "window", "page", "chart")
Version = tuple[str, np.ndarray, "int | None"]


def as_jpeg(image: np.ndarray, quality: int) -> tuple[np.ndarray, int | None]:
    """Return an image after JPEG compression, and the quality that the file's tables state."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    with Image.open(file) as read:
        return np.asarray(read.convert("RGB")), jpeg_quality(read.quantization)  # type: ignore[attr-defined]


def versions(lq: np.ndarray, rng: np.random.Generator) -> Iterator[Version]:
    """Yield the name of each version of an LR image, its pixels, and the quality of its JPEG file."""
    yield "clean", lq, None
    for quality in QUALITIES:
        pixels, stated = as_jpeg(lq, quality)
        yield f"JPEG {quality}", pixels, stated
        if quality in (30, 50):
            yield f"PNG of JPEG {quality}", pixels, None
            yield f"JPEG 90 of JPEG {quality}", *as_jpeg(pixels, 90)
    for sigma in NOISE:
        noisy = lq + rng.normal(0, sigma, lq.shape)
        yield f"noise {sigma}", np.clip(np.rint(noisy), 0, 255).astype(np.uint8), None
    grey = lq + rng.normal(0, 15, (*lq.shape[:2], 1))
    yield "grey noise 15", np.clip(np.rint(grey), 0, 255).astype(np.uint8), None


def psnr(network: torch.nn.Module, lq: np.ndarray, gt: np.ndarray) -> float:
    """Return the PSNR on RGB of an enlarged image, without its outermost pixels."""
    with torch.no_grad():
        image = to_uint8(network(to_tensor(lq)[None])[0])
    inside = np.s_[SCALE:-SCALE, SCALE:-SCALE]
    error = float(np.square(image[inside].astype(np.float64) - gt[inside]).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def images(folders: list[Path], limit: int, drawings: int) -> list[tuple[str, np.ndarray]]:
    """Return the kind and the GT image of each photograph and drawing."""
    found = []
    for folder in folders:
        for path in list_images(folder)[:limit]:
            image = read_rgb(path)
            top, left = ((side - SIDE) // 2 for side in image.shape[:2])
            if min(top, left) >= 0:
                found.append(("photograph", np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])))
    draw = [(KINDS[kind][0], number) for kind in SCREENS for number in range(drawings)]
    return found + [("screenshot", kind(np.random.default_rng(100 + number), SIDE)) for kind, number in draw]


@exit_status
def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of photographs of at least 256x256 pixels")
    parser.add_argument("--limit", type=int, default=20, help="photographs per folder; default: 20")
    parser.add_argument("--drawings", type=int, default=4, help="of each kind; default: 4")
    parser.add_argument("--most", type=float, default=0.1, help="largest loss to the better weights; default: 0.1 dB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = [load_network(name) for name in (CLEAN_WEIGHTS, REAL_WEIGHTS)]
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    gts = images(arguments.folders, arguments.limit, arguments.drawings)
    rng = np.random.default_rng(0)
    for kind, gt in progress(gts, len(gts), "measuring"):
        for version, lq, quality in versions(imresize(gt, 1 / SCALE), rng):
            clean, real = (psnr(network, lq, gt) for network in networks)
            needed, _ = suitable(examine(lq, quality))
            rows.setdefault((kind, version), []).append((clean, real, real if needed else clean))
    say("| images | version | clean | real | chosen | real, of all | to the better weights | to the better of each |")
    say("| --- | --- |" + " ---: |" * 6)
    lost = []
    for (kind, version), values in rows.items():
        clean, real, chosen = (statistics.mean(column) for column in zip(*values, strict=True))
        best = statistics.mean(max(one[:2]) for one in values)
        share = f"{sum(one[2] == one[1] for one in values)} / {len(values)}"
        lost.append(max(clean, real) - chosen)
        row = f"{clean:.2f} | {real:.2f} | {chosen:.2f} | {share} | {-lost[-1]:+.2f} | {chosen - best:+.2f}"
        say(f"| {kind} | {version} | {row} |")
    say(f"largest loss to the better weights: {max(lost):.2f} dB")
    return 1 if max(lost) > arguments.most else 0


if __name__ == "__main__":
    sys.exit(main())
