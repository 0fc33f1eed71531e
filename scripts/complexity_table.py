"""Print parameters, multiply-adds and activations of the SAFMN family, or of any weight files.

    python scripts/complexity_table.py
    python scripts/complexity_table.py --peers            # and of others at x4
    python scripts/complexity_table.py --output 1440 2560 my_weights.pth ...

Counted as fvcore counts (see safmn/archs/complexity.py), for one output image of 1280x720 unless told otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from safmn.archs.complexity import complexity
from safmn.console import say, table
from safmn.errors import OptionError, exit_status
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

# Name, registered type in BasicSR, arguments: x4.
PEERS: list[tuple[str, str, dict[str, Any]]] = [
    ("EDSR baseline x4", "EDSR", {"num_in_ch": 3, "num_out_ch": 3}),
    ("SRResNet x4", "MSRResNet", {"num_in_ch": 3, "num_out_ch": 3}),
    ("SRVGGNetCompact x4", "SRVGGNetCompact", {}),
]
# What neither BasicSR nor spandrel builds, as the papers of SAFMN, SMFANet and SeemoRe give it (K, G, M).
PUBLISHED: list[tuple[str, str, str, str]] = [
    ("RFDN x4 (published)", "433", "23.82", "98.46"),
    ("RLFN x4 (published)", "544", "29.88", "111.17"),
    ("IMDN x4 (published)", "715", "41", ""),
    ("ShuffleMixer x4 (published)", "411", "28", ""),
    ("SMFANet x4 (published)", "197", "11", ""),
    ("SeemoRe-T x4 (published)", "232", "12", ""),
]


def peers() -> Iterator[tuple[str, nn.Module]]:
    """Networks of BasicSR and spandrel, with their names."""
    if importlib.util.find_spec("spandrel") is None:
        raise OptionError("--peers: the package spandrel is not installed: pip install safmn[spandrel]")
    for name, kind, arguments in PEERS:
        network = build(ARCH_REGISTRY, {"type": kind, **arguments})
        network.scale = 4
        yield name, network
    from spandrel.architectures.SPAN import SPAN

    span = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=4).eval()
    span.scale = 4  # type: ignore[assignment]
    yield "SPAN x4", merged(span)


def merged(network: nn.Module) -> nn.Module:
    """SPAN as it runs: each of its convolutions was trained as four, which are merged into ``eval_conv``."""
    for name, child in network.named_children():
        setattr(network, name, child.eval_conv if hasattr(child, "eval_conv") else merged(child))
    return network


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
    parser.add_argument("--peers", action="store_true", help="add networks of others, x4")
    arguments = parser.parse_args(argv)
    rows: list[Sequence[object]] = []
    for name, network in (*networks(arguments.weights), *(peers() if arguments.peers else ())):
        params, multiply_adds, activations = complexity(network, tuple(arguments.output))
        halo = getattr(network, "halo", "")
        numbers = f"{params / 1e3:,.2f}", f"{multiply_adds / 1e9:,.3f}", f"{activations / 1e6:,.2f}"
        rows.append((name, *numbers, "frame" if halo is None else halo))
    rows += [(*row, "") for row in (PUBLISHED if arguments.peers else [])]
    say(table(["network", "params (K)", "multiply-adds (G)", "activations (M)", "halo (px)"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
