"""Print parameters, multiply-adds and activations of the SAFMN family, or of any weight files.

    python scripts/complexity_table.py
    python scripts/complexity_table.py --output 1440 2560 my_weights.pth ...

Counted as fvcore counts (see safmn/archs/complexity.py), for one output image of 1280x720 unless told otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from safmn.archs.complexity import complexity
from safmn.console import say, table
from safmn.errors import exit_status
from safmn.registry import ARCH_REGISTRY, build
from safmn.weights import load_network

# Name, registered type, the published arguments.
FAMILY: list[tuple[str, str, dict[str, Any]]] = [
    *((f"SAFMN x{s}", "SAFMN", {"dim": 36, "n_blocks": 8, "upscaling_factor": s}) for s in (2, 3, 4)),
    *((f"SAFMN-L x{s}", "SAFMN", {"dim": 128, "n_blocks": 16, "upscaling_factor": s}) for s in (2, 3, 4)),
    ("SAFMN_NTIRE23 x4", "SAFMN_NTIRE23", {}),
    ("SAFMNPP x4", "SAFMNPP", {}),
    ("LightSAFMNPP x4", "LightSAFMNPP", {}),
    ("SAFMNv3 x4", "SAFMNv3", {}),
    ("SAFMN_BCIE", "SAFMN_BCIE", {}),
]


def networks(files: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The networks of weight files, or the family where no file is given, with their names."""
    if files:
        yield from ((file, load_network(file)) for file in files)
        return
    for name, kind, arguments in FAMILY:
        with torch.device("meta"):
            network = build(ARCH_REGISTRY, {"type": kind, **arguments})
        yield name, network


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", help="weight files (default: the SAFMN family)")
    parser.add_argument("--output", nargs=2, type=int, default=(720, 1280), metavar=("H", "W"), help="output size")
    arguments = parser.parse_args(argv)
    rows = []
    for name, network in networks(arguments.weights):
        params, multiply_adds, activations = complexity(network, tuple(arguments.output))
        halo = getattr(network, "halo", None)
        rows.append(
            [
                name,
                f"{params / 1e3:,.2f}",
                f"{multiply_adds / 1e9:,.3f}",
                f"{activations / 1e6:,.2f}",
                "frame" if halo is None else halo,
            ]
        )
    say(table(["network", "params (K)", "multiply-adds (G)", "activations (M)", "halo (px)"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
