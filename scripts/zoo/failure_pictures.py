"""Show where weights fail: ``scripts/zoo/failure_pictures.py --weights safmn-x4 -o docs/failures_safmn_x4.webp``.

The script shrinks public-domain photographs of scikit-image, or degrades them with ``--degrade OPTION_FILE``, and
enlarges them again. It finds the square with the largest error in each, and shows the worst ones as LQ, bicubic, ours
and GT, with the PSNR of the square.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn import weights
from safmn.data import build_dataset
from safmn.data.bundled_photos import photo_folder
from safmn.errors import exit_status
from safmn.imaging import imresize, mod_crop, read_rgb, to_tensor, to_uint8, write_image
from safmn.inference.side_by_side import comparison
from safmn.metrics import psnr
from safmn.options import load_options

PHOTOS = ("astronaut.png", "coffee.png", "chelsea.png", "brick.png", "grass.png", "gravel.png", "rocket.jpg")
SQUARE = 64  # HR pixels
CONTEXT = 48  # HR pixels around the square

Image = np.ndarray[Any, np.dtype[np.uint8]]


def worst_square(ours: Image, gt: Image) -> tuple[int, int]:
    """Return top and left of the square with the largest mean squared error, on a grid of 8 pixels."""
    error = ((ours.astype(np.float64) - gt) ** 2).mean(axis=2)
    windows = sliding_window_view(error, (SQUARE, SQUARE))[::8, ::8]
    top, left = np.unravel_index(np.argmax(windows.mean(axis=(2, 3))), windows.shape[:2])
    return int(top) * 8, int(left) * 8


def shrunk(name: str, scale: int) -> tuple[Image, Image]:
    """Return LQ and GT of a photograph."""
    gt = mod_crop(read_rgb(photo_folder() / name), 8 * scale)
    return imresize(gt, 1 / scale), gt


def degraded(name: str, option_file: str) -> tuple[Image, Image]:
    """Return LQ and GT of a photograph, with the degradation of the first data set of a test option file."""
    options = load_options(option_file, mode="test")
    section = {**next(iter(options.datasets.values())), "dataroot_gt": str(photo_folder())}
    dataset = build_dataset(section, phase="test", scale=options.scale)
    item = dataset[[Path(path).name for path in dataset.paths].index(name)]
    return to_uint8(item["lq"]), to_uint8(item["gt"])


def case(network: Any, name: str, lq: Image, gt: Image) -> tuple[float, Image]:
    """Return the PSNR of a photograph's worst square and the picture of it."""
    scale: int = network.scale
    with torch.no_grad():
        ours = to_uint8(network(to_tensor(lq)[None])[0])
    top, left = worst_square(ours, gt)
    above, before = (max(0, start - CONTEXT) // scale * scale for start in (top, left))
    area = np.s_[above : top + SQUARE + CONTEXT, before : left + SQUARE + CONTEXT]
    square = np.s_[top : top + SQUARE, left : left + SQUARE]
    bicubic = imresize(lq, scale)
    panels = {"LQ": np.kron(lq, np.ones((scale, scale, 1), np.uint8))[area]}
    for label, image in (("bicubic", bicubic), ("ours", ours)):
        panels[f"{label} {psnr(image[square], gt[square]):.2f} dB"] = image[area]
    panels[name] = gt[area]
    box = (left - before, top - above, left - before + SQUARE, top - above + SQUARE)
    return psnr(ours[square], gt[square]), comparison(panels, box=box, width=160)


@exit_status
def main() -> int:
    """Find the worst squares and write the picture; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--degrade", metavar="OPTION_FILE", help="a test option file with a set of RealESRGANDataset")
    arguments = parser.parse_args()
    network = weights.load_network(arguments.weights)
    pairs = {
        name: degraded(name, arguments.degrade) if arguments.degrade else shrunk(name, network.scale) for name in PHOTOS
    }
    cases = sorted((case(network, name, *pair) for name, pair in pairs.items()), key=lambda found: found[0])
    cases = cases[: arguments.cases]
    width = min(picture.shape[1] for _, picture in cases)
    write_image(arguments.output, np.vstack([picture[:, :width] for _, picture in cases]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
