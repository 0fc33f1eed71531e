"""Generate the table of the networks of others in docs/peers.md, from what they declare.

``python -m safmn.archs.peers.table`` rewrites it. A test checks that it is up to date. This needs BasicSR.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safmn.archs.peers.declaration import PEERS, Peer
from safmn.archs.peers.form import folded, in_form
from safmn.registry import ARCH_REGISTRY, build

PAGE = Path(__file__).resolve().parents[3] / "docs" / "peers.md"
_BEGIN, _END = "<!-- begin: python -m safmn.archs.peers.table -->", "<!-- end -->"
_HEADINGS = ("network", "paper", "code (licence)", "takes", "halo", "published sizes: parameters", "remarks")


def table() -> str:
    """Return the table as Markdown, a row for each declared network, by name."""
    lines = [_line(_HEADINGS), _line("---" for _ in _HEADINGS)]
    lines += [_line(_cells(PEERS[name])) for name in sorted(PEERS, key=str.lower)]
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with a new table between its markers."""
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{rest.split(_END)[1]}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(declared: Peer) -> tuple[str, ...]:
    built = {size: _built(declared, declared.arguments(size, _largest(declared, size))) for size in declared.sizes}
    any_size = next(iter(built.values())) if built else _built(declared, declared.small)
    halo = getattr(in_form(any_size), "halo", None)
    repository = declared.code.repository
    return (
        f"`{declared.name}`",
        _paper(declared),
        f"[{repository}](https://github.com/{repository}) ({declared.code.licence})",
        str(declared.form),
        "whole image" if halo is None else f"{halo} px",
        "; ".join(_size(declared, size, network) for size, network in built.items()),
        declared.note,
    )


def _paper(declared: Peer) -> str:
    paper = declared.paper
    authors = paper.authors.split(", ")
    text = f"{authors[0]} et al., {paper.venue}" if len(authors) > 1 else f"{authors[0]}, {paper.venue}"
    return f"[{text}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else text


def _size(declared: Peer, size: str, network: nn.Module) -> str:
    """Return the name of a size, its scales, and its parameters at the largest of them, in the form for inference."""
    scales = "/".join(f"x{scale}" for scale in declared.scales_of(size))
    with torch.device("meta"):
        plain = folded(network.to("meta"))
    params = sum(parameter.numel() for parameter in plain.parameters())
    return f"{size} ({scales}): {params / 1e3:,.0f}K"


def _largest(declared: Peer, size: str) -> int:
    return max(declared.scales_of(size))


def _built(declared: Peer, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network: on the meta device, if it needs no values for its constants."""
    section = {"type": declared.name, **arguments}
    try:
        with torch.device("meta"):
            network: nn.Module = build(ARCH_REGISTRY, section)
    except ValueError:
        with torch.random.fork_rng(devices=[]):
            network = build(ARCH_REGISTRY, section)
    return network.eval()


def main() -> int:
    """Write the table into the page of the checkout that contains this module."""
    PAGE.write_bytes(page(PAGE.read_text(encoding="utf-8")).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
