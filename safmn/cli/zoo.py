"""``safmn zoo``: list the weights that come with the package, with their measured quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safmn.errors import exit_status
from safmn.system.console import ArgumentParser, say, table


def _measured(card: dict[str, Any]) -> str:
    sets = card.get("metrics", {}).items()
    return ", ".join(f"{name} {values['psnr']:.2f} / {values['ssim']:.4f}" for name, values in sets)


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """List the weights and return the exit status."""
    ArgumentParser(prog="safmn zoo", description=__doc__).parse_args(argv)
    from safmn.weights.zoo import entries

    cards = {entry.name: entry.card for entry in entries().values()}
    rows = [
        [name, card["type"], f"x{card['scale']}", card["iterations"], _measured(card), card["licence"]]
        for name, card in cards.items()
    ]
    say(table(["name", "network", "scale", "iterations", "PSNR / SSIM", "licence"], rows))
    say("\nMeasured on Y, full frame, crop = scale. Iterations: the last of several runs (docs/weights/runs.md).")
    say("Use: safmn upscale photo.jpg -o out --weights NAME")
    return 0
