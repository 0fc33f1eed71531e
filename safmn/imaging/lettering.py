"""Text on pictures: the font, and what to do with text that is too long."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from PIL import ImageFont

LARGEST, SMALLEST = 14, 10
"""Sizes of labels in pixels; longer labels are smaller."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@functools.cache
def font(size: int) -> Font:
    """Return a font. Pillow's own one has no letters beyond ASCII, so that of matplotlib (DejaVu Sans) goes first."""
    package = importlib.util.find_spec("matplotlib")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        file = Path(folder) / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size=size)


def length(text: str, size: int) -> float:
    """Return the length of a line of text in pixels."""
    return float(font(size).getlength(text))


def fitting_size(text: str, width: int) -> int:
    """Return the largest size of a label in which a line fits into so many pixels, or the smallest one."""
    return next((size for size in range(LARGEST, SMALLEST, -1) if length(text, size) <= width), SMALLEST)


def broken(text: str, width: int) -> list[str]:
    """Break a label into at most two lines of so many pixels; an ellipsis stands for what does not fit."""
    if length(text, SMALLEST) <= width:
        return [text]
    words = [word for word in re.split(r"(?<=[\s_.,/-])", text) if word]
    first = ""
    while words and length((first + words[0]).rstrip(), SMALLEST) <= width:
        first += words.pop(0)
    if not first:  # one long word
        first = shortened(text, width, "")
        words = [text[len(first) :]]
    return [first.rstrip(), shortened("".join(words), width)]


def shortened(text: str, width: int, ending: str = "…") -> str:
    """Return the beginning of a text that fits into so many pixels, with an ending if it is not the whole text."""
    if length(text, SMALLEST) <= width:
        return text
    fits = (n for n in range(len(text) - 1, 0, -1) if length(text[:n] + ending, SMALLEST) <= width)
    return text[: next(fits, 1)].rstrip() + ending
