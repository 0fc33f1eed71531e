"""Arguments that the commands bench, compare and score share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safmn.errors import OptionError
from safmn.system.console import say

if TYPE_CHECKING:
    from safmn.evaluation.methods import Method
    from safmn.evaluation.tables import Table

METHODS = (
    "METHOD: a weight file; a name from `safmn zoo`; an option file (its network and path.pretrain_network_g); a "
    "folder of images that other code made; bicubic; a network without weights (SAFMN-L, EDSR-baseline, or a "
    "registered one, Tiny(dim=8)). "
    "NAME=METHOD names the row. If NAME is a network (registered, a published size, Tiny(dim=8), or an option file), "
    "the weights are loaded into it."
)


def add_methods(parser: argparse.ArgumentParser, *, nargs: str = "*", text: str = "see below") -> None:
    """Add the methods, and what opening them needs."""
    parser.add_argument("methods", nargs=nargs, metavar="METHOD", help=text)
    parser.add_argument("-opt", "--opt", action="append", default=[], metavar="FILE", help="an option file as a METHOD")
    parser.add_argument(
        "--imports", action="append", default=[], metavar="FILE", help="a Python file or module with your networks"
    )
    parser.add_argument(
        "--tolerant", action="store_true", help="warn about unknown arguments in an option file instead of refusing it"
    )
    parser.add_argument("--scale", type=int, metavar="N", help="scale, where files or names leave a choice")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, xpu, mps, auto (default: cpu)")
    parser.epilog = METHODS


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the file of a table."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write .md, .tex, .csv or .html")


def add_data(parser: argparse.ArgumentParser, **more: Any) -> None:
    """Add the sets of images."""
    parser.add_argument(
        "--data",
        action="append",
        metavar="SET",
        help="a folder of <Set>/HR and <Set>/LR_bicubic/X<scale>, such a set, a folder of HR images (LR images are "
        "made with MATLAB's bicubic), NAME=HR_DIR,LR_DIR, or benchmark: datasets/benchmark; may be repeated",
        **more,
    )
    add_again(parser)


def add_again(parser: argparse.ArgumentParser) -> None:
    """Add the choice to measure all."""
    parser.add_argument("--again", action="store_true", help="measure again what was measured before")


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Add the metrics."""
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["psnr", "ssim"],
        metavar="M",
        help="psnr and ssim (on Y, the default), psnr-rgb, ssim-rgb, lpips, dists, topiq, musiq, niqe, clipiqa, "
        "pyiqa:NAME, torchmetrics:lpips, torchmetrics:dists, every registered metric; of whole sets: fid, kid, cmmd, "
        "fid:256 (of patches of 256 pixels), pyiqa:fid",
    )
    parser.add_argument("--fetch", action="store_true", help="let metrics download weights that are missing")


def chosen_metrics(arguments: argparse.Namespace) -> list[str]:
    """Return the metrics, which may be separated by commas."""
    return [name for text in arguments.metrics for name in text.split(",") if name]


def check_output(path: Path | None) -> None:
    """Raise OptionError if no table can be written to a file of this name."""
    if path is not None:
        from safmn.evaluation.tables import check_ending

        check_ending(path)


def check_scale(scale: int | None) -> None:
    """Raise OptionError if ``--scale`` is not at least 1."""
    if scale is not None and scale < 1:
        raise OptionError(f"--scale {scale}: choose 1 or more")


def opened(arguments: argparse.Namespace, default: Sequence[str] = (), *, with_values: bool = False) -> list[Method]:
    """Import the user's files and open the methods."""
    from safmn.evaluation.methods import import_files, open_methods
    from safmn.runtime.execution import named_device

    check_scale(arguments.scale)
    import_files(arguments.imports)
    texts = [*arguments.methods, *arguments.opt] or list(default)
    device = named_device(arguments.device)
    tolerant = arguments.tolerant
    return open_methods(texts, scale=arguments.scale, device=device, with_values=with_values, tolerant=tolerant)


def show(tables: Sequence[Table], output: Path | None) -> None:
    """Print tables with their notes, and write them to a file."""
    if output is not None:
        from safmn.evaluation.tables import write

        write(tables, output)  # first: printing fails if the reader of a pipe is gone
    for table in tables:
        say(f"\n{table.title}\n\n{table.console()}\n")
        for note in table.notes:
            say(f"- {note}")
    if output is not None:
        say(f"\nwritten to {output}")


def box_of(text: str) -> tuple[int, int, int, int]:
    """Return ``x,y,w,h`` of --box as (left, top, right, bottom)."""
    numbers = text.split(",")
    if len(numbers) != 4 or not all(number.strip().isdigit() for number in numbers):
        raise OptionError(f"--box {text}: write x,y,w,h in pixels, such as 120,80,64,48")
    left, top, width, height = map(int, numbers)
    return left, top, left + width, top + height
