"""Measure weights on patterns of single pixels: ``scripts/benchmarks/pixel_patterns.py safmn-x2 FILE.pth ...``

Stripes, checks and dots of one or two pixels, and random pixels, are sharper than any image that was shrunk by bicubic,
but screens, pixel art and dithering are full of them. A network that was trained on shrunk images alone may answer with
other colours. The patterns fill 64x64 LR pixels of a white image of 96x96.

Prints a Markdown table. For patterns of black and white, and of two greys: the largest difference between the channels
of a pixel of the result, in levels of 0 to 255, which is 0 in a grey image. For patterns of two colours: how far the
output of the network leaves [0, 1] before it is clipped.

The weights are names of ``safmn zoo`` or files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.errors import exit_status
from safmn.system.console import say
from safmn.weights import load_network

Array = np.ndarray[Any, np.dtype[Any]]

SIDE = 64  # LR pixels of the pattern
MARGIN = 16  # LR pixels of white around it
PAIRS = {
    "black and white": ((0, 0, 0), (255, 255, 255)),
    "two greys": ((77, 77, 77), (178, 178, 178)),
    "red on white": ((200, 0, 0), (255, 255, 255)),
    "green on black": ((0, 143, 0), (0, 0, 0)),
    "blue and yellow": ((0, 0, 255), (255, 255, 0)),
}
GREY = ("black and white", "two greys")


def patterns() -> dict[str, Array]:
    """Return masks of the patterns, bool (64, 64), by name."""
    down, across = np.mgrid[:SIDE, :SIDE]
    return {
        "horizontal stripes": down % 2 == 1,
        "vertical stripes": across % 2 == 1,
        "checks": (down + across) % 2 == 1,
        "dots": (down % 2 == 1) & (across % 2 == 1),
        "stripes of two pixels": down // 2 % 2 == 1,
        "checks of two pixels": (down // 2 + across // 2) % 2 == 1,
        "diagonal stripes": (down + across) // 2 % 2 == 1,
        "every third row": down % 3 == 0,
        "random pixels": np.random.default_rng(0).random((SIDE, SIDE)) < 0.5,
    }


def image(mask: Array, first: tuple[int, int, int], second: tuple[int, int, int]) -> Array:
    """Return a pattern of two colours on white, uint8 RGB (96, 96, 3); ``second`` is where the mask is true."""
    whole = np.full((SIDE + 2 * MARGIN, SIDE + 2 * MARGIN, 3), 255, np.uint8)
    whole[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE] = np.where(mask[..., None], second, first)
    return whole


@torch.no_grad()
def measure(network: nn.Module, name: str) -> dict[str, float]:
    """Return the deviation of each pattern in one pair of colours: levels for greys, else beyond [0, 1]."""
    found = {}
    for pattern, mask in patterns().items():
        lq = torch.from_numpy(image(mask, *PAIRS[name])).permute(2, 0, 1)[None].float() / 255
        output = network(lq)[0]
        if name in GREY:
            levels = output.clamp(0, 1).mul(255).round()
            found[pattern] = float((levels.amax(0) - levels.amin(0)).max())
        else:
            found[pattern] = float(torch.maximum(-output, output - 1).max().clamp(min=0))
    return found


@exit_status
def main() -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="names in the zoo, or files")
    arguments = parser.parse_args()
    say("| weights | " + " | ".join(f"{name}, {'levels' if name in GREY else 'out of range'}" for name in PAIRS) + " |")
    say("| --- |" + " --- |" * len(PAIRS))
    for weights in arguments.weights:
        network = load_network(weights).eval()
        cells = []
        for name in PAIRS:
            pattern, worst = max(measure(network, name).items(), key=lambda item: item[1])
            cells.append(f"{worst:.0f} ({pattern})" if name in GREY else f"{worst:.2f} ({pattern})")
        say(f"| {Path(weights).stem} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
