"""Pages of text in many faces, and windows with code, tables and forms."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image, ImageDraw

from safmn.data.drawing.plain import flat, gradient
from safmn.data.drawing.shapes import Colour, blank, box, colour, font, grid, paint, size, words, write
from safmn.value_types import Array

_STROKED = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_PLAIN,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_COMPLEX_SMALL,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)


def _line(rng: np.random.Generator, letters: str, height: int, face: int) -> Array:
    """Return a mask (h, w) in [0, 1] of a line of letters about ``height`` pixels high."""
    if face < len(_STROKED):
        slant = cv2.FONT_ITALIC if rng.random() < 0.25 else 0
        name, thick = _STROKED[face] | slant, max(round(height * rng.uniform(0.03, 0.16)), 1)
        scale = cv2.getFontScaleFromHeight(name, max(round(height * 0.7), 4), thick)
        (width, rise), below = cv2.getTextSize(letters, name, scale, thick)
        mask = np.zeros((rise + below + 2 * thick, width + 2 * thick), np.uint8)
        cv2.putText(mask, letters, (thick, rise + thick), name, scale, 255, thick, cv2.LINE_AA)
        return mask / 255.0
    fill, bold = font(min(max(height, 6), 96)), int(rng.integers(0, 3)) * max(height // 24, 0)
    left, top, right, bottom = fill.getbbox(letters or " ", stroke_width=bold)
    canvas = Image.new("L", (max(int(right - left), 1) + 2, max(int(bottom - top), 1) + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), letters, fill=255, font=fill, stroke_width=bold)
    return np.asarray(canvas) / 255.0


def page(rng: np.random.Generator, side: int) -> Array:
    """Draw lines of text in one of many faces: stroked or filled, bold, slanted, narrow, outlined, turned."""
    image = gradient(rng, side) if rng.random() < 0.2 else flat(rng, side)
    if rng.random() < 0.4:
        image[...] = 255 if rng.random() < 0.7 else 20
    height, ink = int(size(rng, 9, side / 3)), np.array(colour(rng), np.float64)
    if rng.random() < 0.4:
        ink[...] = 0 if image.mean() > 128 else 235
    slant, narrow = rng.choice([0.0, 0.0, float(rng.uniform(-0.3, 0.3))]), float(rng.uniform(0.6, 1.3))
    turn = rng.choice([0.0, 0.0, 0.0, float(rng.uniform(-30, 30))])
    cover = np.zeros((2 * side, 2 * side))
    face = int(rng.integers(2 * len(_STROKED)))
    for top in range(0, 2 * side, max(int(height * rng.uniform(1.1, 2.2)), 4)):
        mask = _line(rng, words(rng, 3 + 5 * side // height), height, face)
        mask = mask[: 2 * side - top, : 2 * side]
        cover[top : top + len(mask), : mask.shape[1]] = mask
        if rng.random() < 0.2:
            face = int(rng.integers(2 * len(_STROKED)))
    middle = (float(side), float(side))
    matrix = cv2.getRotationMatrix2D(middle, turn, 1.0)
    matrix[0, :2] = matrix[0, :2] * narrow + np.array([0, slant])
    matrix[:, 2] = matrix[:, 2] + rng.uniform(-side / 4, side / 4, 2) - side / 2
    if turn or slant or rng.random() < 0.5:
        shown: Array = cv2.warpAffine(cover, matrix, (side, side), flags=cv2.INTER_LINEAR)
    else:
        shown = cover[:side, :side]
    result = image * (1 - shown[..., None]) + ink * shown[..., None]
    return np.rint(result).astype(np.uint8)


def _code(rng: np.random.Generator, image: Array) -> None:
    """Fill the image with coloured words on a grid of letters, as terminals and editors do."""
    side, height = len(image), int(size(rng, 10, 30))
    inks = [colour(rng) for _ in range(int(rng.integers(1, 6)))]
    if rng.random() < 0.3:
        inks = [(0, int(rng.integers(150, 256)), int(rng.integers(0, 90)))]
    advance = height * 0.62
    stroked = bool(rng.random() < 0.5)
    for top in range(int(rng.integers(-height, 1)), side, round(height * rng.uniform(1.15, 1.5))):
        column = int(rng.integers(0, 6))
        while column * advance < side:
            word, ink = words(rng, int(rng.integers(1, 10))), inks[int(rng.integers(len(inks)))]
            left = round(column * advance)
            if stroked:
                at, thick = (left, top + height), 1 + (height > 20)
                cv2.putText(image, word, at, cv2.FONT_HERSHEY_SIMPLEX, height / 32, ink, thick, cv2.LINE_AA)
            else:
                write(image, word, left, top, height, ink)
            column += len(word) + 1
            if rng.random() < 0.2:
                break


def _table(rng: np.random.Generator, image: Array, ink: Colour, theme: Colour) -> None:
    """Draw rows and columns with rules, a head, and every other row in another colour."""
    side, at, row = len(image), grid(len(image)), round(size(rng, 16, 64))
    other = tuple(int(value) for value in np.clip(image[0, 0].astype(int) + rng.integers(-30, 31), 0, 255))
    columns = np.sort(rng.integers(0, side, int(rng.integers(1, 5))))
    for number, top in enumerate(range(int(rng.integers(-row, 1)), side, row)):
        if number == 0 or number % 2:
            fill = theme if number == 0 else (other[0], other[1], other[2])
            paint(image, box(at, -9, top, side + 18, row), fill, False)
        for left in columns:
            write(image, words(rng, int(rng.integers(2, 12))), int(left) + 4, top + row // 5, round(row * 0.5), ink)
    for left in columns:
        cv2.line(image, (int(left), 0), (int(left), side), theme, int(rng.integers(1, 3)))


def _form(rng: np.random.Generator, image: Array, ink: Colour, theme: Colour) -> None:
    """Draw labels with fields, boxes to tick, switches and sliders, one under another."""
    side, unit = len(image), size(rng, 14, 40)
    for top in np.arange(unit * rng.uniform(0, 1), side, unit * 1.8):
        left, shape = float(rng.uniform(-unit, side / 3)), int(rng.integers(4))
        at, y = grid(side), round(float(top))
        write(image, words(rng, int(rng.integers(3, 12))), left, y, round(unit * 0.6), ink)
        x = round(left + unit * rng.uniform(4, 7))
        if shape == 0:  # a field with a frame of one pixel
            outline = box(at, x, y, round(unit * 6), round(unit), unit * 0.15)
            paint(image, outline, theme)
            paint(image, outline + 1, (255, 255, 255))
        elif shape == 1:  # a box, ticked or not
            outline = box(at, x, y, round(unit * 0.8), round(unit * 0.8), 2)
            paint(image, outline, theme)
            if rng.random() < 0.5:
                paint(image, outline + 2, (255, 255, 255))
        elif shape == 2:  # a switch
            paint(image, box(at, x, y, round(unit * 2), round(unit), unit / 2), theme)
            knob = x + (unit * 1.05 if rng.random() < 0.5 else unit * 0.05)
            paint(image, box(at, knob, y + unit * 0.05, unit * 0.9, unit * 0.9, unit * 0.45), (255, 255, 255))
        else:  # a slider
            paint(image, box(at, x, y + round(unit / 2), round(unit * 6), 2), ink, False)
            knob = x + unit * rng.uniform(0, 6)
            paint(image, box(at, knob, y + unit * 0.2, unit * 0.6, unit * 0.6, unit * 0.3), theme)


def window(rng: np.random.Generator, side: int) -> Array:
    """Draw a part of a program's window: code, a table or a form, at times under a title bar."""
    dark = rng.random() < 0.4
    image = blank(
        side, colour(rng) if rng.random() < 0.3 else ((int(rng.integers(0, 50)),) * 3 if dark else (255,) * 3)
    )
    ink: Colour = (int(rng.integers(190, 256)),) * 3 if dark else (int(rng.integers(0, 120)),) * 3
    form, theme = int(rng.integers(3)), colour(rng)
    if form == 0:
        _code(rng, image)
    elif form == 1:
        _table(rng, image, ink, theme)
    else:
        _form(rng, image, ink, theme)
    if rng.random() < 0.4:
        height = round(size(rng, 16, 60))
        paint(image, box(grid(side), -9, -9, side + 18, height + 9), theme, False)
        write(image, words(rng, 14), float(rng.uniform(0, 30)), height // 4, height // 2, (255, 255, 255))
        for button in range(3):
            paint(image, box(grid(side), side - (button + 1) * height, height // 4, height // 2, height // 2, 3), ink)
    return image
