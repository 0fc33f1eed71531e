"""Drawings of what screens show: text, icons, user interfaces and charts."""

from __future__ import annotations

import math

import cv2
import numpy as np

from safmn.data.drawing.plain import edges, flat
from safmn.data.drawing.shapes import Colour, blank, box, colour, disc, grid, paint, size, words, write
from safmn.value_types import Array


def text(rng: np.random.Generator, side: int) -> Array:
    """Draw lines of letters on a flat background or on one with edges."""
    image = edges(rng, side) if rng.random() < 0.3 else flat(rng, side)
    height = int(size(rng, 9, side / 4))
    ink = colour(rng)
    for top in range(int(rng.integers(-height, height)), side, int(height * rng.uniform(1.1, 2.5))):
        line = words(rng, 2 + int(2.5 * side / height))
        write(image, line, float(rng.uniform(-height, height)), top, height, ink)
    return image


def _icon(rng: np.random.Generator, image: Array, left: float, top: float, width: float, ink: Colour) -> None:
    """Draw one icon of ``width`` pixels in-place: a disc, a ring, a box, a polygon, strokes or a letter."""
    form, middle, side = rng.integers(6), width / 2, len(image)
    x0, y0 = math.floor(left), math.floor(top)
    area = tuple(slice(max(start, 0), max(min(start + math.ceil(width) + 1, side), 0)) for start in (y0, x0))
    x, y = grid(side)
    part, at = image[area], (x[:, area[1]], y[area[0]])  # only the pixels that the icon covers
    if form < 2:
        paint(part, disc(at, left + middle, top + middle, middle), ink)
        if form == 1:
            paint(part, disc(at, left + middle, top + middle, middle * rng.uniform(0.3, 0.8)), colour(rng))
    elif form == 2:
        paint(part, box(at, round(left), round(top), round(width), round(width), width * rng.uniform(0, 0.4)), ink)
    elif form < 5:
        count = int(rng.integers(3, 9))
        turns = np.sort(rng.uniform(0, 2 * math.pi, count))
        reach = middle * rng.uniform(0.4, 1.0, count)
        points = np.stack([left + middle + reach * np.cos(turns), top + middle + reach * np.sin(turns)], axis=1)
        corners = [np.rint(points * 16).astype(np.int32)]
        if form == 3:
            cv2.fillPoly(image, corners, ink, cv2.LINE_AA, 4)
        else:
            thick = max(1, int(width * rng.uniform(0.03, 0.15)))
            cv2.polylines(image, corners, bool(rng.integers(2)), ink, thick, cv2.LINE_AA, 4)
    else:
        write(image, words(rng, 1), left, top, int(width), ink)


def icons(rng: np.random.Generator, side: int) -> Array:
    """Draw rows of icons on a flat background, in one colour or in several."""
    image, cell = flat(rng, side), size(rng, 16, side)
    ink = colour(rng) if rng.random() < 0.5 else None
    for top in np.arange(rng.uniform(-cell / 2, 0), side, cell):
        for left in np.arange(rng.uniform(-cell / 2, 0), side, cell):
            width = cell * rng.uniform(0.3, 0.9)
            _icon(rng, image, left, top, width, ink or colour(rng))
    return image


def screen(rng: np.random.Generator, side: int) -> Array:
    """Draw a part of a user interface: a header, panels, buttons, paragraphs and icons."""
    unit, at = size(rng, 14, 64), grid(side)  # the unit is the height of a button
    page = blank(side, colour(rng) if rng.random() < 0.5 else (255 if rng.random() < 0.7 else 24,) * 3)
    theme, ink = colour(rng), colour(rng) if rng.random() < 0.3 else (int(rng.choice([0, 40, 96, 255])),) * 3
    if rng.random() < 0.7:  # a header, which may fill the page
        height = size(rng, unit, side)
        paint(page, box(at, -9, round(rng.uniform(-height / 2, 0)), side + 18, round(height)), theme, False)
        write(page, words(rng, 20), rng.uniform(0, unit), height / 4, int(unit * 0.5), (255, 255, 255))
    for _ in range(rng.integers(1, 8)):
        left, top = rng.uniform(-unit, side), rng.uniform(-unit, side)
        form = rng.integers(4)
        if form == 0:  # a panel
            width, height = size(rng, 2 * unit, side), size(rng, unit, side)
            outline = box(at, round(left), round(top), round(width), round(height), rng.uniform(0, unit / 3))
            paint(page, outline, colour(rng))
            paint(page, outline + 1, colour(rng))
        elif form == 1:  # a button
            width = unit * rng.uniform(1, 6)
            corner = unit * rng.choice([0.0, 0.1, 0.5])
            paint(page, box(at, round(left), round(top), round(width), round(unit), corner), theme)
            label = (255, 255, 255) if rng.random() < 0.6 else colour(rng)
            write(page, words(rng, int(width / unit * 2)), left + unit / 3, top + unit / 4, int(unit * 0.5), label)
        elif form == 2:  # a paragraph
            for line in range(rng.integers(1, 6)):
                write(page, words(rng, 30), left, top + line * unit * 0.7, int(unit * 0.45), ink)
        else:
            _icon(rng, page, left, top, unit * rng.uniform(0.5, 2), theme)
    return page


def chart(rng: np.random.Generator, side: int) -> Array:
    """Draw a chart with bars, lines or a pie, with axes, grid lines and labels."""
    image, ink = blank(side, (255, 255, 255) if rng.random() < 0.6 else colour(rng)), colour(rng)
    form, count = rng.integers(3), int(rng.integers(2, 12))
    if rng.random() < 0.5:
        for level in np.linspace(0, side, int(rng.integers(3, 9))):
            cv2.line(image, (0, int(level)), (side, int(level)), (200, 200, 200), 1)
    if form == 0:
        inks, step = [colour(rng) for _ in range(int(rng.integers(1, 4)))], side / count
        for bar in range(count):
            height = rng.uniform(0.05, 1) * side
            paint(
                image,
                box(
                    grid(side),
                    round(bar * step),
                    round(side - height),
                    round(step * rng.uniform(0.4, 1)),
                    round(height),
                ),
                inks[bar % len(inks)],
                False,
            )
    elif form == 1:
        for _ in range(rng.integers(1, 4)):
            points = np.stack([np.linspace(0, side, count), rng.uniform(0, side, count)], axis=1)
            corners = [np.rint(points * 16).astype(np.int32)]
            cv2.polylines(image, corners, False, colour(rng), int(rng.integers(1, 6)), cv2.LINE_AA, 4)
    else:
        middle, radius, turn = rng.uniform(0, side, 2), size(rng, side / 4, side), rng.uniform(0, 360)
        place = [round(value) for value in middle]
        for start, end in zip(ends := np.sort(rng.uniform(0, 360, count)), ends[1:], strict=False):
            cv2.ellipse(image, place, [int(radius)] * 2, turn, start, end, colour(rng), -1, cv2.LINE_AA)
    thick = int(rng.integers(1, 4))
    cv2.line(image, (thick, 0), (thick, side), ink, thick)
    cv2.line(image, (0, side - thick - 1), (side, side - thick - 1), ink, thick)
    height = int(rng.integers(8, 20))
    for top in range(height, side, int(rng.integers(2, 5)) * height):
        write(image, words(rng, 4), 6, top, height, ink)
    return image
