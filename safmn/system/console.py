"""What the commands say on standard output. The library itself logs and never prints."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate
from tqdm import tqdm


def say(text: str = "") -> None:
    """Write a line to standard output without tearing a progress bar."""
    tqdm.write(text)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns: the first column to the left, the others to the right."""
    aligned = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, header, tablefmt="pipe", colalign=aligned if rows else None, disable_numparse=True)
