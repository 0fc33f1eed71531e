"""``safmn export``: write a network to a file for other programs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from safmn.errors import OptionError, exit_status
from safmn.inference.choices import DEFAULT_WEIGHTS, EXPORT_FORMATS, EXPORT_PRECISIONS, EXPORT_PROFILES
from safmn.inference.sources import add_arguments, load_named, show_choices
from safmn.system.console import ArgumentParser, log_warnings_to_stderr, say, say_line


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    p = ArgumentParser(
        prog="safmn export",
        description="Write a network to a file for other programs, and check the file against the network. A file that "
        "fails the check is not kept. docs/export.md shows how to use each format. Exit status: 0 done; 2 a wrong "
        "argument, or a network that the format does not support.",
    )
    p.add_argument("-o", "--output", required=True, metavar="F", help="output file; an existing file is replaced")
    add_arguments(p, default=DEFAULT_WEIGHTS)
    p.add_argument(
        "--scale", type=int, metavar="S", help="the weights' scale, for those that serve several; otherwise a check"
    )
    p.add_argument(
        "--format",
        choices=tuple(EXPORT_FORMATS),
        help=f"default: by the ending ({', '.join(EXPORT_FORMATS.values())})",
    )
    sizes = p.add_mutually_exclusive_group()
    sizes.add_argument("--dynamic", action="store_true", help="support images of any size (the default)")
    sizes.add_argument(
        "--size", metavar="WxH", help="support only this image size, for devices that need it (phones, NPUs)"
    )
    p.add_argument(
        "--precision",
        default="fp32",
        choices=EXPORT_PRECISIONS,
        help="int8: the dense convolutions of an ONNX file in 8 bits, calibrated on photographs and drawings",
    )
    p.add_argument(
        "--profile",
        choices=EXPORT_PROFILES,
        help="follow the rules of a program that reads the format; upscayl: Upscayl's engine (ncnn)",
    )
    p.add_argument("--debug", action="store_true", help="show the whole traceback of an error in your own code")
    return p


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn export`` and return its exit status."""
    log_warnings_to_stderr()
    show_choices()
    options = parser().parse_args(argv)
    size = None if options.size is None else _size(options.size)
    from safmn.inference.export import export_network

    exported = export_network(
        load_named(
            options.weights,
            options.opt,
            overrides=options.force_yml,
            imports=options.imports,
            scale=options.scale,
            tolerant=options.tolerant,
        ),
        options.output,
        format=options.format,
        size=size,
        precision=options.precision,
        profile=options.profile,
    )
    say_line(f"wrote {', '.join(map(str, exported.files))}")
    if exported.error is not None:
        sizes = ", ".join(f"{width}x{height}" for height, width in exported.sizes)
        say(f"checked at {sizes}: differs from the network by at most {exported.error:.1e}")
    for note in exported.notes:
        say(note)
    return 0


def _size(text: str) -> tuple[int, int]:
    """Return ``WIDTHxHEIGHT`` as (height, width)."""
    numbers = re.fullmatch(r"(\d+)x(\d+)", text)
    if not numbers:
        raise OptionError(f"--size {text}: write WIDTHxHEIGHT, such as 640x360")
    return int(numbers[2]), int(numbers[1])
