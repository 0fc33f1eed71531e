"""Terminal output and log formatting for the commands. The library itself logs and never prints.

File names, keys of option files and similar text are untrusted. They may contain control characters that a terminal
executes: escape sequences, carriage returns, marks that change the writing direction. These are escaped here.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from tqdm import tqdm

# Control characters, marks of writing direction, line separators, and single surrogates (from undecodable file names);
# tab and newline are not included.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_INDENT = "  "


def printable(text: object) -> str:
    """Return a text with control characters escaped as Python does, except newlines and tabs.

    >>> printable("photo\\x1b[2J.png")
    'photo\\\\x1b[2J.png'
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def one_line(text: object) -> str:
    """Return a text for one line, such as a file name: like :func:`printable`, but newlines and tabs are escaped."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def message(text: object) -> str:
    """Return a printable message with lines after the first indented, so that no name can look like a new message."""
    first, *rest = printable(text).split("\n")
    if any(line and not line.startswith(" ") for line in rest):
        rest = [_INDENT + line if line else line for line in rest]
    return "\n".join([first, *rest])


def say(text: str = "") -> None:
    """Write text to standard output without breaking a progress bar."""
    tqdm.write(printable(text))


def say_line(text: object) -> None:
    """Write one line, which may contain file names, to standard output."""
    tqdm.write(one_line(text))


def complain(text: object) -> None:
    """Write a message to standard error."""
    sys.stderr.write(f"{message(text)}\n")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with escaped error messages."""

    def error(self, text: str) -> NoReturn:  # type: ignore[override]  # argparse calls it by position
        """Print the error and exit with status 2."""
        super().error(one_line(text))


class Formatter(logging.Formatter):
    """Log formatter that escapes control characters and indents lines after the first."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        return message(super().format(record))


def log_warnings_to_stderr() -> None:
    """Show the library's warnings on standard error, for commands without a log file."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def escape_last_resort() -> None:
    """Also escape warnings that are logged before a command sets up its log."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Formatter())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, with the first column left-aligned and the others right-aligned."""
    from tabulate import tabulate  # takes longer to import than most commands need to answer a mistake

    aligned = ["left", *["right"] * (len(header) - 1)]
    return tabulate(
        [[one_line(cell) for cell in row] for row in rows],
        header,
        tablefmt="pipe",
        colalign=aligned if rows else None,
        disable_numparse=True,
    )
