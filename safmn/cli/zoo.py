"""``safmn zoo``: list the weights that come with the package, with their quality; ``push`` publishes weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safmn.errors import exit_status
from safmn.system.console import ArgumentParser, say, table


def _measured(card: dict[str, Any]) -> str:
    sets = card.get("metrics", {}).items()
    return ", ".join(f"{name} {values['psnr']:.2f} / {values['ssim']:.4f}" for name, values in sets)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="safmn zoo", description=__doc__)
    actions = parser.add_subparsers(dest="action", metavar="push")
    push = actions.add_parser("push", help="publish weights with a model card on the Hugging Face hub")
    push.add_argument("weights", help=".pth or .safetensors file, or a name from `safmn zoo`")
    push.add_argument("target", metavar="hf:OWNER/NAME", help="the repository; it is made if it does not exist")
    push.add_argument("--licence", metavar="L", help="licence of the weights (default: that of the file's metadata)")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--folder", metavar="DIR", help="only write the files into this folder, and publish nothing")
    return parser


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """List the weights, or publish some, and return the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.action == "push":
        from safmn.weights.hub import push

        folder = None if arguments.folder is None else Path(arguments.folder)
        place = push(
            arguments.weights, arguments.target, private=arguments.private, licence=arguments.licence, folder=folder
        )
        say(f"published: {place}" if folder is None else f"written to {place}; nothing was published")
        return 0
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
