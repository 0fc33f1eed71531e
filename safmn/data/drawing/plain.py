"""Drawings of areas: flat colours, edges, gradients and halftones."""

from __future__ import annotations

import math

import numpy as np

from safmn.data.drawing.shapes import blank, box, colour, disc, grid, half_plane, paint, size
from safmn.value_types import Array


def flat(rng: np.random.Generator, side: int) -> Array:
    """Draw an image of one colour."""
    return blank(side, colour(rng))


def edges(rng: np.random.Generator, side: int) -> Array:
    """Draw large areas of two to four colours with edges at any angle."""
    image = blank(side, colour(rng))
    for _ in range(rng.integers(1, 4)):
        form, soft = rng.integers(3), bool(rng.integers(2))
        if form == 0:
            angle = rng.uniform(0, 2 * math.pi) if rng.random() < 0.5 else math.pi / 2 * rng.integers(4)
            distance = half_plane(side, float(angle), float(rng.uniform(-side / 2, side / 2)))
        elif form == 1:
            width, height = size(rng, side / 8, 1.5 * side), size(rng, side / 8, 1.5 * side)
            left, top = rng.uniform(-width / 2, side - width / 2), rng.uniform(-height / 2, side - height / 2)
            distance = box(grid(side), round(left), round(top), round(width), round(height))
        else:
            x0, y0 = rng.uniform(0, side, 2)
            distance = disc(grid(side), x0, y0, size(rng, side / 16, side))
        paint(image, distance, colour(rng), soft)
    return image


def gradient(rng: np.random.Generator, side: int) -> Array:
    """Draw a gradient between two colours, along a line or around a point."""
    first, second = np.array(colour(rng)), np.array(colour(rng))
    if rng.random() < 0.7:
        angle = rng.uniform(0, 2 * math.pi) if rng.random() < 0.5 else math.pi / 2 * rng.integers(4)
        way = half_plane(side, float(angle), 0.0) / size(rng, side / 2, 4 * side) + 0.5
    else:
        x0, y0 = rng.uniform(0, side, 2)
        way = disc(grid(side), x0, y0, 0.0) / size(rng, side / 2, 2 * side)
    way = np.clip(way, 0, 1)[..., None]
    return np.rint(first * (1 - way) + second * way).astype(np.uint8)


def halftone(rng: np.random.Generator, side: int) -> Array:
    """Draw a printer's halftone: dots on a rotated grid, or stripes, that grow along a line."""
    image, x_y, cell = flat(rng, side), grid(side), size(rng, 5, 32)
    angle = rng.uniform(0, math.pi)
    along = (x_y[0] * math.cos(angle) + x_y[1] * math.sin(angle)) / cell
    across = (x_y[1] * math.cos(angle) - x_y[0] * math.sin(angle)) / cell
    tone = np.clip(half_plane(side, rng.uniform(0, 2 * math.pi), 0.0) / (side * rng.uniform(0.5, 4)) + 0.5, 0, 1)
    if rng.random() < 0.7:
        distance = np.hypot(along % 1 - 0.5, across % 1 - 0.5) - 0.7 * tone
    else:
        distance = np.abs(along % 1 - 0.5) - 0.5 * tone
    paint(image, distance * cell, colour(rng))
    return image
