"""Measure how much noise weights leave on plain grey: ``scripts/benchmarks/noise_left.py safmn-x2-real FILE.pth ...``

White noise of 5, 10, 15 and 25 levels is added to an area of one grey of 128x128 LR pixels. Prints a Markdown table
with the standard deviation of the result, in levels of 0 to 255, far from the borders.

The weights are names of ``safmn zoo`` or files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.errors import exit_status
from safmn.system.console import say
from safmn.weights import load_network

STRENGTHS = (5, 10, 15, 25)
_BORDER = 32  # pixels of the result


@torch.no_grad()
def left(network: nn.Module, strength: float) -> float:
    """Return the standard deviation that is left of noise with the deviation ``strength``, both in levels."""
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    output = network((0.5 + noise * strength / 255).clamp(0, 1))[..., _BORDER:-_BORDER, _BORDER:-_BORDER]
    return float((output - output.mean((2, 3), keepdim=True)).std()) * 255


@exit_status
def main() -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="names in the zoo, or files")
    arguments = parser.parse_args()
    say("| weights | " + " | ".join(f"{strength} levels" for strength in STRENGTHS) + " |")
    say("| --- |" + " ---: |" * len(STRENGTHS))
    for weights in arguments.weights:
        network = load_network(weights).eval()
        say(f"| {Path(weights).stem} | " + " | ".join(f"{left(network, each):.1f}" for each in STRENGTHS) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
