"""``safmn report``: show training runs and tests in one HTML file, which needs no network.

Give folders that training (experiments/<name>) or testing (results/<name>) wrote, also while a run goes on, and runs
of BasicSR. With --paper, figures and tables for a paper are written, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from safmn.errors import UserError, exit_status
from safmn.system.console import ArgumentParser, log_warnings_to_stderr, say_line


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="safmn report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training run or of a test")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html"
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
    output: Path = arguments.output
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {output}: the report is an HTML file; give a name that ends in .html")
    from safmn.report.build import build_page, read_sources
    from safmn.system.files import write_atomically

    log_warnings_to_stderr()
    page = build_page(read_sources(arguments.runs), images=arguments.images, megabytes=arguments.size)
    text = page.render()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text)
    say_line(f"{output}: {len(text.encode()) / 1e6:.1f} MB")
    return 0
