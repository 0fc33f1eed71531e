"""What drawings consist of: colours, shapes with anti-aliased edges, and letters."""

from __future__ import annotations

import functools
import math
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from safmn.value_types import Array

Colour = tuple[int, int, int]
Grid = tuple[Array, Array]

_LARGEST_FONT = 96
_LETTERS = "abcdefghijklmnopqrstuvwxyz" * 4 + "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?()+-=/%&@#"


def colour(rng: np.random.Generator) -> Colour:
    """Draw a colour: any (probability 0.4), saturated (0.3), on the surface of the RGB cube (0.15) or grey (0.15)."""
    kind = rng.random()
    if kind < 0.4:
        values = rng.integers(256, size=3)
    elif kind < 0.7:
        hsv = np.array([[[rng.integers(180), rng.integers(128, 256), rng.integers(64, 256)]]], np.uint8)
        values = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
    elif kind < 0.85:
        values = np.where(rng.random(3) < 0.6, 255 * rng.integers(2, size=3), rng.integers(256, size=3))
    else:
        values = np.full(3, rng.choice([0, 255, int(rng.integers(256))]))
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def blank(side: int, fill: Colour) -> Array:
    """Return an image of the colour ``fill``."""
    return np.full((side, side, 3), fill, np.uint8)


def paint(image: Array, distance: Array, ink: Colour, soft: bool = True) -> None:
    """Fill the shape with the signed ``distance`` (pixels, negative inside), in-place; ``soft``: anti-aliased."""
    cover = np.clip(0.5 - distance, 0, 1) if soft else (distance < 0).astype(np.float64)
    cover = cover[..., None]
    image[...] = np.rint(image * (1 - cover) + np.array(ink) * cover).astype(np.uint8)


def grid(side: int) -> Grid:
    """Return the coordinates x (1, side) and y (side, 1) of the pixel centres."""
    steps = np.arange(side) + 0.5
    return steps[None, :], steps[:, None]


def box(at: Grid, left: float, top: float, width: float, height: float, corner: float = 0.0) -> Array:
    """Return the signed distance of the pixels ``at`` to a rectangle with round corners."""
    x, y = at
    across = np.abs(x - left - width / 2) - (width / 2 - corner)
    down = np.abs(y - top - height / 2) - (height / 2 - corner)
    outside = np.hypot(np.maximum(across, 0), np.maximum(down, 0))
    return outside + np.minimum(np.maximum(across, down), 0) - corner


def disc(at: Grid, x0: float, y0: float, radius: float) -> Array:
    """Return the signed distance of the pixels ``at`` to a disc."""
    x, y = at
    return np.hypot(x - x0, y - y0) - radius


def half_plane(side: int, angle: float, offset: float) -> Array:
    """Return the signed distance (side, side) to a half plane whose edge is ``offset`` pixels from the centre."""
    x, y = grid(side)
    return (x - side / 2) * math.cos(angle) + (y - side / 2) * math.sin(angle) - offset


def size(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a length whose logarithm is uniformly distributed."""
    return float(np.exp(rng.uniform(math.log(low), math.log(max(high, low * 1.01)))))


@functools.lru_cache(maxsize=_LARGEST_FONT)
def font(height: int) -> Any:
    """Return the default font of Pillow with a size of ``height`` pixels."""
    return ImageFont.load_default(height)


def write(image: Array, words: str, left: float, top: float, height: int, ink: Colour) -> None:
    """Write one line of text in-place, anti-aliased and clipped to the image."""
    canvas = Image.fromarray(image)
    ImageDraw.Draw(canvas).text((left, top), words, fill=ink, font=font(min(max(height, 6), _LARGEST_FONT)))
    image[...] = np.asarray(canvas)


def words(rng: np.random.Generator, count: int) -> str:
    """Draw ``count`` characters, some of them spaces."""
    letters = [_LETTERS[index] for index in rng.integers(len(_LETTERS), size=count)]
    return "".join(" " if rng.random() < 0.17 else letter for letter in letters)
