"""Draw synthetic images that photographs do not cover: flat colours, edges, gradients, text, icons, screens and so on.

Each kind of image is a function ``(rng, side) -> image``, uint8 (side, side, 3), that depends only on the draws from
``rng``. Sizes are in pixels of the drawn image and cover all scales: an area of one colour may fill the image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from safmn.errors import OptionError, did_you_mean
from safmn.value_types import Array

Colour = tuple[int, int, int]
Grid = tuple[Array, Array]
Kind = Callable[[np.random.Generator, int], Array]

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


# Name -> the function, and the default weight with which the kind is drawn.
KINDS: Mapping[str, tuple[Kind, float]] = MappingProxyType(
    {
        "flat": (flat, 3.0),
        "edges": (edges, 3.0),
        "gradient": (gradient, 1.0),
        "text": (text, 1.0),
        "icons": (icons, 1.0),
        "screen": (screen, 1.5),
        "chart": (chart, 0.8),
        "halftone": (halftone, 0.5),
    }
)


def shares_of(kinds: Mapping[str, float] | None) -> tuple[list[str], Array]:
    """Return the names of the kinds and their probabilities.

    Args:
        kinds: relative weights; None: the defaults of :data:`KINDS`.

    Raises:
        OptionError: there is no such kind, a weight is negative or not finite, or all are zero.
    """
    weights = {name: share for name, (_, share) in KINDS.items()} if kinds is None else dict(kinds)
    for name, weight in weights.items():
        if name not in KINDS:
            raise OptionError(f"kinds: there is no kind {name!r}.{did_you_mean(name, KINDS)}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise OptionError(f"kinds: {name}: {weight} is not a weight; give a number of at least 0")
    total = sum(weights.values())
    if not total:
        raise OptionError("kinds: give at least one kind a weight above 0")
    return list(weights), np.array(list(weights.values()), np.float64) / total


def draw(rng: np.random.Generator, side: int, names: list[str], probabilities: Array) -> tuple[str, Array]:
    """Draw a kind, then an image of it; return its name and the image, uint8 (side, side, 3)."""
    name = names[int(rng.choice(len(names), p=probabilities))]
    return name, KINDS[name][0](rng, side)
