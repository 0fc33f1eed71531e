"""Print parameters, multiply-adds and activations of the SAFMN family, or of any weight files.

    python scripts/benchmarks/complexity_table.py
    python scripts/benchmarks/complexity_table.py --peers            # with networks of others at x4
    python scripts/benchmarks/complexity_table.py --output 1440 2560 my_weights.pth ...

The counts are those of fvcore (see safmn/archs/complexity.py) for one output image, by default of 1280x720.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from safmn.archs import FAMILY
from safmn.archs.complexity import complexity
from safmn.errors import OptionError, exit_status
from safmn.evaluation.published import ROWS
from safmn.registry import ARCH_REGISTRY, build
from safmn.system.console import say, table
from safmn.weights import load_network

# Name, registered type, published arguments.
SIZES = [(name, network.__name__, arguments) for network in FAMILY for name, arguments in network.sizes.items()]

# Name, registered type in BasicSR, arguments; all for x4.
PEERS: list[tuple[str, str, dict[str, Any]]] = [
    ("EDSR baseline x4", "EDSR", {"num_in_ch": 3, "num_out_ch": 3}),
    ("SRResNet x4", "MSRResNet", {"num_in_ch": 3, "num_out_ch": 3}),
    ("SRVGGNetCompact x4", "SRVGGNetCompact", {}),
]
# Neither BasicSR nor spandrel has these networks, so their rows are the published ones.
NOT_BUILT = ("RFDN", "RLFN", "IMDN", "ShuffleMixer", "SMFANet", "SeemoRe-T")


def published_rows() -> Iterator[tuple[str, ...]]:
    """Yield the rows of :data:`NOT_BUILT` at x4, with the numbers from the papers."""
    for row in ROWS:
        if row.scale == 4 and row.network in NOT_BUILT:
            numbers = (row.params, row.madds, row.acts)
            yield f"{row.network} x4 (published)", *("" if n is None else f"{n:g}" for n in numbers), ""


def peers() -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and networks of BasicSR and spandrel.

    Raises:
        OptionError: spandrel is not installed.
    """
    if importlib.util.find_spec("spandrel") is None:
        raise OptionError("--peers: the package spandrel is not installed: pip install spandrel")
    for name, kind, arguments in PEERS:
        network = build(ARCH_REGISTRY, {"type": kind, **arguments})
        network.scale = 4
        yield name, network
    from spandrel.architectures.SPAN import SPAN

    span = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=4).eval()
    span.scale = 4  # type: ignore[assignment]
    yield "SPAN x4", merged(span)


def merged(network: nn.Module) -> nn.Module:
    """Return SPAN in its form for inference: each convolution is trained as four, which ``eval_conv`` merges."""
    for name, child in network.named_children():
        setattr(network, name, child.eval_conv if hasattr(child, "eval_conv") else merged(child))
    return network


def networks(files: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and networks of weight files or, without files, of the SAFMN family."""
    if files:
        yield from ((file, load_network(file)) for file in files)
        return
    for name, kind, arguments in SIZES:
        with torch.device("meta"):
            network = build(ARCH_REGISTRY, {"type": kind, **arguments})
        yield name, network


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", help="weight files (default: the SAFMN family)")
    parser.add_argument("--output", nargs=2, type=int, default=(720, 1280), metavar=("H", "W"), help="output size")
    parser.add_argument("--peers", action="store_true", help="add networks of others at x4")
    arguments = parser.parse_args(argv)
    rows: list[Sequence[object]] = []
    for name, network in (*networks(arguments.weights), *(peers() if arguments.peers else ())):
        params, multiply_adds, activations = complexity(network, tuple(arguments.output))
        halo = getattr(network, "halo", "")
        numbers = f"{params / 1e3:,.2f}", f"{multiply_adds / 1e9:,.3f}", f"{activations / 1e6:,.2f}"
        rows.append((name, *numbers, "frame" if halo is None else halo))
    if arguments.peers:
        rows.extend(published_rows())
    say(table(["network", "params (K)", "multiply-adds (G)", "activations (M)", "halo (px)"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
