"""Repeated structure in perspective: windows, bricks, grids, stripes, tiles."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from safmn.data.drawing.fields import cloud, natural_colours, shrunk
from safmn.data.drawing.shapes import half_plane, size
from safmn.value_types import Array

Canvas = NDArray[np.float32]
_FORMS = ("windows", "bricks", "grid", "stripes", "tiles", "blinds")


def _bar(rng: np.random.Generator, canvas: Canvas, box: tuple[float, float, float, float], ink: Canvas) -> None:
    """Fill the box (left, top, width, height), whose edges are rounded to pixels, with ``ink``."""
    left, top, width, height = box
    rows = slice(max(round(top), 0), max(round(top + height), 0))
    canvas[rows, max(round(left), 0) : max(round(left + width), 0)] = ink


def _windows(rng: np.random.Generator, canvas: Canvas, wide: int, high: int) -> None:
    inks = natural_colours(rng, 6)
    margin_x, margin_y = rng.uniform(0.05, 0.3, 2)
    frame = max(round(min(wide, high) * rng.uniform(0.02, 0.08)), 1)
    panes_x, panes_y = rng.integers(1, 4, 2)
    lit, sill, glass = rng.uniform(0, 0.5), rng.random() < 0.5, rng.uniform(0, 60)
    width, height = wide * (1 - 2 * margin_x), high * (1 - 2 * margin_y)
    for top in range(0, canvas.shape[0], high):
        for left in range(0, canvas.shape[1], wide):
            x, y = left + wide * margin_x, top + high * margin_y
            _bar(rng, canvas, (x, y, width, height), inks[1])
            pane = inks[2 if rng.random() < lit else 3] + np.float32(rng.normal(0, glass / 3))
            step_x, step_y = (width - frame) / panes_x, (height - frame) / panes_y
            for row in range(panes_y):
                for column in range(panes_x):
                    at = (x + frame + column * step_x, y + frame + row * step_y)
                    _bar(rng, canvas, (*at, step_x - frame, step_y - frame), pane)
            if sill:
                _bar(rng, canvas, (x - 2 * frame, y + height, width + 4 * frame, frame), inks[4])


def _bricks(rng: np.random.Generator, canvas: Canvas, wide: int, high: int) -> None:
    high = max(round(wide * rng.uniform(0.25, 0.6)), 4)
    joint, offset = max(round(high * rng.uniform(0.08, 0.3)), 1), rng.choice([0.5, 0.33, 0.25])
    inks = natural_colours(rng, 64)
    for row, top in enumerate(range(0, canvas.shape[0], high)):
        shift = round((row * offset % 1.0) * wide)
        for left in range(-shift, canvas.shape[1], wide):
            _bar(rng, canvas, (left, top, wide - joint, high - joint), inks[rng.integers(1, 64)])


def _grid(rng: np.random.Generator, canvas: Canvas, wide: int, high: int) -> None:
    ink, thick = natural_colours(rng, 1)[0], max(round(min(wide, high) * rng.uniform(0.05, 0.4)), 1)
    for line in range(thick):
        canvas[line::high] = ink
        canvas[:, line::wide] = ink


def _stripes(rng: np.random.Generator, canvas: Canvas, wide: int, high: int) -> None:
    inks, position, number = natural_colours(rng, int(rng.integers(2, 6))), 0, 0
    widths = [max(round(wide * share), 2) for share in rng.uniform(0.1, 1.0, len(inks))]
    while position < canvas.shape[1]:
        width = widths[number % len(inks)]
        canvas[:, position : position + width] = inks[number % len(inks)]
        position, number = position + width, number + 1


def _tiles(rng: np.random.Generator, canvas: Canvas, wide: int, high: int) -> None:
    inks = natural_colours(rng, int(rng.integers(2, 8)))
    pattern = rng.integers(len(inks), size=(int(rng.integers(1, 5)), int(rng.integers(1, 5))))
    rows, columns = np.arange(canvas.shape[0]) // wide, np.arange(canvas.shape[1]) // wide
    canvas[...] = inks[pattern[rows[:, None] % len(pattern), columns[None] % pattern.shape[1]]]
    if rng.random() < 0.5:
        _grid(rng, canvas, wide, wide)


def _blinds(rng: np.random.Generator, canvas: Canvas, wide: int, high: int) -> None:
    """Slats with a shade across, as blinds, stairs, corrugated iron and columns have them."""
    ink, depth = natural_colours(rng, 1)[0], float(rng.uniform(20, 110))
    way = np.arange(canvas.shape[1]) % wide / wide
    shade = np.sin(way * 2 * np.pi) if rng.random() < 0.5 else 2 * way - 1
    canvas[...] = ink + (depth * shade)[None, :, None]


_DRAW = dict(zip(_FORMS, (_windows, _bricks, _grid, _stripes, _tiles, _blinds), strict=True))


def _view(rng: np.random.Generator, canvas: Canvas, side: int) -> Canvas:
    """Look at the canvas from a random place, so that no part of it is shrunk to less than about a half."""
    length = len(canvas)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * side
    turn = rng.choice([0.0, 0.0, float(rng.uniform(-180, 180)), float(rng.uniform(-8, 8))])
    strength = rng.choice([0.0, 0.2, 0.45])
    zoom = float(rng.uniform(0.75, 1.0)) * length / side
    source = (corners - side / 2) * np.float32(zoom * 0.7)
    source *= (1 + rng.uniform(-strength, strength, (4, 1))).astype(np.float32)
    radians = np.deg2rad(turn)
    around = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]], np.float32)
    source = source @ around.T + length / 2
    matrix = cv2.getPerspectiveTransform(corners, source.astype(np.float32))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpPerspective(canvas, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(view, np.float32)


def _wall(rng: np.random.Generator, side: int) -> Canvas:
    """Draw one wall in perspective, with some dirt and light: float32 (side, side, 3)."""
    wide = round(size(rng, 8, side / 3))
    high = max(round(wide * rng.uniform(0.5, 2)), 6)
    canvas: Canvas = np.empty((side, side, 3), np.float32)
    canvas[...] = natural_colours(rng, 1)[0]
    _DRAW[_FORMS[int(rng.integers(len(_FORMS)))]](rng, canvas, wide, high)
    if rng.random() < 0.5:
        canvas = canvas.transpose(1, 0, 2)
    if rng.random() < 0.6:
        canvas = canvas + np.float32(rng.uniform(3, 25)) * cloud(rng, side, float(rng.uniform(0.5, 2)))[..., None]
    view = _view(rng, np.ascontiguousarray(canvas), side)
    if rng.random() < 0.4:  # light falls off to one side
        first, last = rng.uniform(0.5, 1.2, 2)
        view *= np.linspace(float(first), float(last), side).astype(np.float32)[None, :, None]
    return view


def facade(rng: np.random.Generator, side: int) -> Array:
    """Draw a wall, a floor or a fence: one form again and again, in perspective; or two of them with an edge."""
    view = _wall(rng, 2 * side)
    if rng.random() < 0.4:
        behind = half_plane(2 * side, float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(-0.6, 0.6)) * side) > 0
        view[behind] = _wall(rng, 2 * side)[behind]
    return shrunk(view, side)
