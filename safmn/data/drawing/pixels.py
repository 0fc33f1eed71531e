"""Drawings whose details are single pixels: stripes, checks, dots, random pixels, dithering and sprites."""

from __future__ import annotations

import numpy as np

from safmn.data.drawing.shapes import Colour, blank, colour, size
from safmn.value_types import Array

# The threshold matrix of ordered dithering: Bayer 1973, 4x4.
_BAYER = (np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) + 0.5) / 16


def pixel_pattern(rng: np.random.Generator, side: int) -> Array:
    """Draw one to four areas of patterns of pixels on a plain ground, uint8 (side, side, 3)."""
    image = blank(side, _contrasts(rng, 1)[0])
    whole = rng.random() < 0.3
    for _ in range(1 if whole else rng.integers(1, 5)):
        height, width = (side, side) if whole else (min(round(size(rng, 4, side)), side) for _ in range(2))
        top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
        image[top : top + height, left : left + width] = _pattern(rng, height, width)
    return image


def _pattern(rng: np.random.Generator, height: int, width: int) -> Array:
    """Draw a pattern of one of five kinds whose dots have one pixel, less often two or three."""
    dot = int(rng.choice(3, p=[0.75, 0.17, 0.08])) + 1
    rows, columns = -(-height // dot), -(-width // dot)
    kind = rng.integers(5)
    if kind < 2:
        chosen = _periodic(rng, rows, columns)
    elif kind == 2:
        chosen = rng.random((rows, columns)) < rng.choice([0.05, 0.2, 0.5])
    elif kind == 3:
        chosen = _dithered(rng, rows, columns)
    else:
        chosen = _sprites(rng, rows, columns)
    colours = np.array(_contrasts(rng, 2 if rng.random() < 0.7 else 4), np.uint8)
    index = chosen.astype(np.intp)
    if len(colours) == 4:
        index += 2 * (rng.random((rows, columns)) < 0.5 if rng.random() < 0.5 else _periodic(rng, rows, columns))
    return enlarged_pixels(colours[index], dot)[:height, :width]


def _periodic(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Draw a small tile and repeat it: stripes, checks, dots, weaves; each row of tiles may be shifted."""
    tile_rows, tile_columns = (int(count) for count in rng.choice([1, 2, 3, 4], size=2, p=[0.2, 0.5, 0.15, 0.15]))
    tile = rng.random((tile_rows, tile_columns)) < 0.5
    tile[rng.integers(tile_rows), rng.integers(tile_columns)] ^= tile.all() or not tile.any()
    down, across = np.mgrid[:rows, :columns]
    shift = int(rng.integers(tile_columns)) * (down // tile_rows)
    return np.asarray(tile[down % tile_rows, (across + shift) % tile_columns])


def _dithered(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Draw a gradient that is dithered to two values, by a threshold matrix or by noise."""
    down, across = np.mgrid[:rows, :columns]
    slope_down, slope_across = rng.uniform(-1, 1, 2) / max(rows, columns)
    tone = rng.uniform(0, 1) + slope_down * (down - rows / 2) + slope_across * (across - columns / 2)
    threshold = _BAYER[down % 4, across % 4] if rng.random() < 0.7 else rng.random((rows, columns))
    return np.asarray(tone > threshold)


def _sprites(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Draw small symmetric figures of random pixels, side by side."""
    edge = int(rng.integers(5, 12))
    count = (-(-rows // edge), -(-columns // edge))
    half = rng.random((*count, edge - 1, edge // 2)) < rng.uniform(0.3, 0.7)
    figures = np.zeros((*count, edge, edge), bool)
    figures[:, :, :-1, : edge // 2] = half
    figures[:, :, :-1, edge - 1 - edge // 2 : edge - 1] = half[..., ::-1]
    return figures.swapaxes(1, 2).reshape(count[0] * edge, -1)[:rows, :columns]


def _contrasts(rng: np.random.Generator, count: int) -> list[Colour]:
    """Draw ``count`` colours: black and white, greys, corners of the RGB cube, opposite ones, or any."""
    kind = rng.integers(5)
    if kind == 0:
        values = np.repeat(255 * rng.permutation(np.arange(count) % 2)[:, None], 3, 1)
    elif kind == 1:
        values = np.repeat(rng.integers(256, size=(count, 1)), 3, 1)
    elif kind == 2:
        values = 255 * rng.integers(2, size=(count, 3))
    elif kind == 3:
        first = np.array(colour(rng))
        values = np.stack([first if number % 2 == 0 else 255 - first for number in range(count)])
    else:
        values = np.array([colour(rng) for _ in range(count)])
    return [(int(red), int(green), int(blue)) for red, green, blue in values]


def enlarged_pixels(image: Array, scale: int) -> Array:
    """Return an image (H, W, C) in which each pixel has become a square of ``scale`` x ``scale``."""
    return np.repeat(np.repeat(image, scale, 0), scale, 1)
