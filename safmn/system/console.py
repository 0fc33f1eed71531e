"""What the commands say on standard output. The library itself logs and never prints."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm


def say(text: str = "") -> None:
    """Write a line to standard output without tearing a progress bar."""
    tqdm.write(text)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns: the first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
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
