"""``safmn report``: show training runs and tests in one HTML file, which needs no network.

Give folders that training (experiments/<name>) or testing (results/<name>) wrote, also while a run goes on, and runs
of BasicSR. --paper writes figures and tables for a paper, and with -o also the HTML file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from safmn.cli.method_arguments import box_of
from safmn.errors import UserError, exit_status
from safmn.system.console import ArgumentParser, log_warnings_to_stderr, say_line


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="safmn report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training run or of a test")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: report.html; with --paper, no page without -o"
    )
    parser.add_argument(
        "--images",
        type=_count,
        default=6,
        metavar="N",
        help="images shown of each set, of tests the worst (default: 6)",
    )
    parser.add_argument(
        "--size", type=_megabytes, default=24.0, metavar="MB", help="limit of all images in the file (default: 24)"
    )
    paper = parser.add_argument_group("figures and tables for a paper")
    paper.add_argument(
        "--paper", type=Path, metavar="DIR", help="write curves.pdf, a grid of crops, and tables (LaTeX, CSV)"
    )
    paper.add_argument("--image", metavar="NAME", help="image of the grid: NAME or SET/NAME (default: most different)")
    paper.add_argument(
        "--box", metavar="x,y,w,h", help="its box, in pixels of the GT image (default: where outputs differ most)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no count of images")
    return int(text)


def _megabytes(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = -1
    if not 0 <= size < 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no size in megabytes")
    return size


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and return the exit status."""
    arguments = _parser().parse_args(argv)
    output: Path | None = arguments.output
    if output is None and arguments.paper is None:
        output = Path("report.html")
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {output}: the report is an HTML file; give a name that ends in .html")
    box = None if arguments.box is None else box_of(arguments.box)
    if arguments.paper is None and (box or arguments.image):
        raise UserError("--box and --image belong to --paper DIR")
    from safmn.report.build import build_page, read_sources
    from safmn.system.files import write_atomically

    log_warnings_to_stderr()
    sources = read_sources(arguments.runs)
    if output is not None:
        text = build_page(sources, images=arguments.images, megabytes=arguments.size).render()
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, text)
        say_line(f"{output}: {len(text.encode()) / 1e6:.1f} MB")
    if arguments.paper is not None:
        from safmn.report.paper import write_paper

        for line in write_paper(sources, arguments.paper, image=arguments.image, box=box):
            say_line(line)
    return 0
