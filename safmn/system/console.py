"""What the commands say on the terminal, and in logs. The library itself logs and never prints.

Names of files, keys of option files and the like are anybody's, and may hold what a terminal obeys: escape sequences,
carriage returns, marks that turn the direction of writing. Here they become visible.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from tqdm import tqdm

# Control characters, marks of writing direction, line separators, and halves of surrogate pairs (from names that are no
# text); not the tab and the end of a line.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_INDENT = "  "


def printable(text: object) -> str:
    """A text of several lines with everything that a terminal would obey, but the ends of lines, as Python escapes it.

    >>> printable("photo\\x1b[2J.png")
    'photo\\\\x1b[2J.png'
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def one_line(text: object) -> str:
    """The same for what belongs in one line, such as a file's name: ends of lines are escaped as well."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def message(text: object) -> str:
    """The same for a message: lines after the first are indented, so that no name looks like a message of its own."""
    first, *rest = printable(text).split("\n")
    if any(line and not line.startswith(" ") for line in rest):
        rest = [_INDENT + line if line else line for line in rest]
    return "\n".join([first, *rest])


def say(text: str = "") -> None:
    """Write text to standard output without tearing a progress bar."""
    tqdm.write(printable(text))


def say_line(text: object) -> None:
    """Write one line, which may hold names of files, to standard output."""
    tqdm.write(one_line(text))


def complain(text: object) -> None:
    """Write a message to standard error."""
    sys.stderr.write(f"{message(text)}\n")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, whose complaints about arguments are escaped."""

    def error(self, text: str) -> NoReturn:  # type: ignore[override]  # argparse calls it by position
        """Complain, and leave with status 2."""
        super().error(one_line(text))


class Formatter(logging.Formatter):
    """Of log records: what a terminal would obey is escaped, and lines after the first are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return message(super().format(record))


def log_warnings_to_stderr() -> None:
    """Show the library's warnings on standard error, for commands that keep no log."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def escape_last_resort() -> None:
    """Let warnings that are logged before a command sets up its log be escaped as well."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Formatter())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns: the first column to the left, the others to the right."""
    cells = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(padded) + " |")
    rule = (
        "|"
        + "|".join(("-" * (width + 2)) if i == 0 else ("-" * (width + 1) + ":") for i, width in enumerate(widths))
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])
