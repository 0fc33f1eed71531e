"""``safmn export``: a network as a file for other programs."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence

from safmn.errors import OptionError, exit_status
from safmn.inference.backends import PRECISIONS
from safmn.inference.export import FORMATS, export_network
from safmn.inference.export.formats import Size
from safmn.inference.upscaler import DEFAULT_WEIGHTS
from safmn.system.console import ArgumentParser, log_warnings_to_stderr, say, say_line
from safmn.weights import load_network


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = ArgumentParser(
        prog="safmn export",
        description="Write a network to a file that other programs run, and check the file against the network: it is "
        "there and right, or it is not there. docs/export.md shows how to use each. Exit status: 0 done, 2 a wrong "
        "argument, or a network that the format cannot hold.",
    )
    p.add_argument("-o", "--output", required=True, metavar="F", help="the file; replaced if there is one")
    p.add_argument(
        "--weights", default=DEFAULT_WEIGHTS, metavar="W", help=".pth, .safetensors or a name of `safmn zoo`"
    )
    p.add_argument("--format", choices=tuple(FORMATS), help="default: by the ending (.onnx, .xml, .param, .pt)")
    sizes = p.add_mutually_exclusive_group()
    sizes.add_argument("--dynamic", action="store_true", help="images of every size (the default)")
    sizes.add_argument("--size", metavar="WxH", help="images of this size only, for what cannot do without (NPUs)")
    p.add_argument("--precision", default="fp32", choices=PRECISIONS)
    p.add_argument(
        "--profile",
        choices=sorted({profile for form in FORMATS.values() for profile in form.profiles}),
        help="a program that reads the format by its own rules; upscayl: Upscayl's engine (ncnn)",
    )
    return p


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn export`` and return its exit status."""
    log_warnings_to_stderr()
    logging.getLogger("safmn.weights").setLevel(logging.INFO)  # which of a file's weights are taken
    options = parser().parse_args(argv)
    exported = export_network(
        load_network(options.weights),
        options.output,
        format=options.format,
        size=None if options.size is None else _size(options.size),
        precision=options.precision,
        profile=options.profile,
    )
    say_line(f"wrote {', '.join(map(str, exported.files))}")
    if exported.error is not None:
        sizes = ", ".join(f"{width}x{height}" for height, width in exported.sizes)
        say(f"checked at {sizes}: within {exported.error:.1e} of the network")
    for note in exported.notes:
        say(note)
    return 0


def _size(text: str) -> Size:
    """``WIDTHxHEIGHT`` as (height, width)."""
    numbers = re.fullmatch(r"(\d+)x(\d+)", text)
    if not numbers:
        raise OptionError(f"--size {text}: write WIDTHxHEIGHT, such as 640x360")
    return int(numbers[2]), int(numbers[1])
