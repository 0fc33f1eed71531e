"""Compare weights on training and held-out images: ``held_out.py TRAINED HELD_OUT --weights A B``.

Of each image, the script uses at most the top left 512x512 pixels, cropped to multiples of 32, at x3 of 96. It shrinks
them, enlarges them with each of the weights, and prints the mean PSNR on RGB as a Markdown table. If the difference
between two weights changes from folder to folder, one of them is overfitted to its training images.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.errors import exit_status
from safmn.imaging import imresize, list_images, read_rgb, to_tensor
from safmn.system.console import say
from safmn.weights import load_network

SIDE, MULTIPLE = 512, 32


def cut(hr: np.ndarray, scale: int) -> np.ndarray:
    """Return at most the top left 512x512 pixels of an image (H, W, 3), cropped to multiples of 32 and of the scale."""
    multiple = math.lcm(MULTIPLE, scale)
    height, width = (min(side, SIDE) // multiple * multiple for side in hr.shape[:2])
    return hr[:height, :width]


def squared_error(image: Tensor, hr: np.ndarray, border: int) -> float:
    """Return the mean squared error of an image (3, H, W) in [0, 1] to ``hr``, uint8 (H, W, 3), without borders."""
    return float((image - to_tensor(hr))[:, border:-border, border:-border].square().mean())


@torch.no_grad()
def network_error(network: torch.nn.Module, hr: np.ndarray) -> float:
    """Return the network's mean squared error for ``hr``, uint8 (H, W, 3): shrunk, enlarged, and compared.

    Borders of ``scale`` pixels are left out.
    """
    scale = int(network.scale)  # type: ignore[arg-type]
    image = network(to_tensor(imresize(hr, 1 / scale))[None])[0].clamp(0, 1)
    return squared_error(image, hr, scale)


def psnr(network: torch.nn.Module, hr: np.ndarray) -> float:
    """Return the PSNR that corresponds to :func:`network_error`, in dB."""
    error = network_error(network, hr)
    return -10 * math.log10(error) if error else math.inf


def mean_psnr(networks: Sequence[torch.nn.Module], folder: Path, limit: int) -> list[float]:
    """Return each network's mean PSNR over at most ``limit`` images of the folder; each run chooses the same ones."""
    files = list_images(folder)
    random.Random(1).shuffle(files)
    values: list[list[float]] = [[] for _ in networks]
    for path in files[:limit]:
        image = read_rgb(path)
        for own, network in zip(values, networks, strict=True):
            own.append(psnr(network, cut(image, int(network.scale))))  # type: ignore[arg-type]
    return [statistics.mean(own) for own in values]


@exit_status
def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of images")
    parser.add_argument("--weights", nargs="+", required=True, help="files, or names of the zoo")
    parser.add_argument("--limit", type=int, default=50, help="largest number of images per folder")
    arguments = parser.parse_args()
    networks = [load_network(name) for name in arguments.weights]
    say("| images | " + " | ".join(Path(name).name for name in arguments.weights) + " |")
    say("| --- |" + " ---: |" * len(networks))
    for folder in arguments.folders:
        row = " | ".join(f"{value:.2f}" for value in mean_psnr(networks, folder, arguments.limit))
        say(f"| {folder} | {row} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
