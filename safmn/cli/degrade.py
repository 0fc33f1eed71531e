"""``safmn degrade``: show, save and replay the degradation that real-world training applies to an image."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from safmn.errors import OptionError, exit_status
from safmn.system.console import ArgumentParser

_MOST = 400  # pictures in a contact sheet


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    p = ArgumentParser(
        prog="safmn degrade",
        description="Degrade an image as real-world training does. The same seed, epoch and index give the same "
        "degradation as in training; a saved recipe gives the same file, byte for byte.",
    )
    p.add_argument("image", metavar="IMAGE", help="the GT image")
    p.add_argument("-o", "--output", required=True, metavar="OUT", help="the LQ image or the contact sheet (.png)")
    p.add_argument(
        "-opt",
        "--opt",
        metavar="FILE",
        help="training option file (default: Real-ESRGAN's values)",
    )
    p.add_argument("--force_yml", nargs="+", default=[], metavar="A:B=C", help="override options of the file")
    p.add_argument("--tolerant", action="store_true", help="warn about unknown keys of --opt instead of refusing it")
    p.add_argument("--scale", type=int, metavar="N", help="GT size / LQ size, without --opt (default: 4)")
    p.add_argument("--seed", type=int, metavar="S", help="default: the option file's manual_seed, or 0")
    p.add_argument("--epoch", type=int, default=0, metavar="E")
    p.add_argument("--index", type=int, default=0, metavar="I", help="index of the (with --grid: first) sample")
    p.add_argument("--recipe", metavar="FILE", help="replay this recipe instead of drawing one")
    p.add_argument("--save-recipe", metavar="FILE", help="write the recipe as JSON")
    p.add_argument("--patch", action="store_true", help="crop and flip as in training, and write the LQ patch")
    p.add_argument(
        "--grid",
        metavar="5x5",
        help="write a contact sheet of columns x rows and print the steps of each index",
    )
    return p


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn degrade`` and return its exit status."""
    arguments = parser().parse_args(argv)
    _check_arguments(arguments)
    _check_files(arguments)
    grid = _grid_size(arguments.grid) if arguments.grid else None
    from safmn.prepare import degraded

    return degraded.contact_sheet(arguments, grid) if grid else degraded.one(arguments)


def _check_arguments(arguments: argparse.Namespace) -> None:
    if Path(arguments.output).is_dir():
        raise OptionError(f"-o {arguments.output} is a folder; give a file name, such as {arguments.output}/lq.png")
    for name in ("seed", "epoch", "index"):
        if (getattr(arguments, name) or 0) < 0:
            raise OptionError(f"--{name} {getattr(arguments, name)}: must not be negative")
    if arguments.scale is not None and arguments.scale < 1:
        raise OptionError(f"--scale {arguments.scale}: must be at least 1")
    drawing = [
        name
        for name in ("opt", "force_yml", "tolerant", "scale", "seed", "epoch", "index", "grid")
        if getattr(arguments, name)
    ]
    if arguments.recipe and drawing:
        raise OptionError(f"--recipe replays a recipe unchanged: --{drawing[0]} has no effect; remove it")
    if arguments.grid and arguments.save_recipe:
        raise OptionError("--save-recipe saves one recipe; for a picture of the --grid, use its --index without --grid")
    if arguments.opt and arguments.scale:
        raise OptionError(f"--scale: the option file {arguments.opt} sets the scale; change it there")
    if arguments.force_yml and not arguments.opt:
        raise OptionError("--force_yml overrides values of an option file; give the file with --opt")
    if arguments.tolerant and not arguments.opt:
        raise OptionError("--tolerant is about the keys of an option file; give the file with --opt")


def _check_files(arguments: argparse.Namespace) -> None:
    """Check that no output file is also an input file or another output file."""
    read = {"IMAGE": arguments.image, "--opt": arguments.opt, "--recipe": arguments.recipe}
    seen = {Path(file).resolve(): option for option, file in read.items() if file}
    for option, file in (("--output", arguments.output), ("--save-recipe", arguments.save_recipe)):
        if file and seen.setdefault(Path(file).resolve(), option) != option:
            raise OptionError(f"{option} {file} is the same file as {seen[Path(file).resolve()]}; choose another name")


def _grid_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    columns, rows = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= columns * rows <= _MOST:
        raise OptionError(f"--grid {text}: give columns x rows, such as 5x5, with at most {_MOST} pictures")
    return columns, rows
