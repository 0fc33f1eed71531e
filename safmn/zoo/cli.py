"""``safmn zoo``: the weights that come with the package, with what they were measured to reach."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from safmn.console import say, table
from safmn.errors import exit_status
from safmn.zoo import entries


def _numbers(card: dict[str, Any], set_name: str) -> str:
    values = card.get("metrics", {}).get(set_name)
    return f"{values['psnr']:.2f} / {values['ssim']:.4f}" if values else "-"


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """List the weights; returns the exit status."""
    argparse.ArgumentParser(prog="safmn zoo", description=__doc__).parse_args(argv)
    rows = [
        [
            *(entry.name, entry.card["type"], f"x{entry.card['scale']}", entry.card["iterations"]),
            *(_numbers(entry.card, "Set5"), _numbers(entry.card, "Set14"), entry.card["licence"]),
        ]
        for entry in entries().values()
    ]
    say(table(["name", "network", "scale", "iterations", "Set5 PSNR/SSIM", "Set14 PSNR/SSIM", "licence"], rows))
    say("\nMeasured on Y, full frame, crop = scale. Use: safmn upscale photo.jpg -o out --weights NAME")
    return 0
