"""Grids of crops in the form of the field's papers: the GT image with a box, and the box as each method shows it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from safmn.errors import DataError
from safmn.imaging.lettering import broken, fitting_size, font, shortened
from safmn.inference.side_by_side import Box, densest_box
from safmn.value_types import Array

_WHITE, _BLACK, _GREY, _FRAME = (255, 255, 255), (20, 20, 20), (90, 90, 90), (220, 38, 38)
_GAP = 10
_CELL = 200  # pixels of a crop's longer side
_LINE = 17  # height of a line of text
_PART = 0.18  # side of a chosen box relative to the shorter side of the image


class Crop(NamedTuple):
    """One picture of the grid: a whole image, the label under its crop, and the scores under the label."""

    label: str
    scores: str
    image: Array


def most_different_box(images: Sequence[Array], gt: Array | None = None) -> Box:
    """Return the square where images of the same scene differ most from one another (and from ``gt``).

    Args:
        images: uint8 (H, W, 3), all of one size.
        gt: the GT image; used if there is only one image.

    Raises:
        DataError: there is nothing to compare.
    """
    pictures = [*images] if len(images) > 1 or gt is None else [*images, gt]
    if len(pictures) < 2:
        raise DataError("there is only one image, so no place where images differ: give --box x,y,w,h")
    grey = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in pictures])
    side = max(int(min(grey.shape[1:]) * _PART), 1)
    return densest_box(grey.var(axis=0), side)


def grid(gt: Array, crops: Sequence[Crop], box: Box, *, name: str = "", metrics: str = "PSNR / SSIM") -> Array:
    """Draw the GT image with the box, and beside it the crops in two rows, the first being that of the GT image.

    Args:
        gt: uint8 (H, W, 3) RGB.
        crops: the methods' images, of the same size.
        box: (left, top, right, bottom) in pixels of the GT image.
        name: name of the image, below it.
        metrics: what the scores of the crops are, below the GT image's crop.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: the box is empty or outside of the image, or an image has another size.
    """
    check_box(box, gt)
    for crop in crops:
        if crop.image.shape != gt.shape:
            raise DataError(
                f"{crop.label}: the image is {crop.image.shape[1]}x{crop.image.shape[0]}, but the GT image is "
                f"{gt.shape[1]}x{gt.shape[0]}"
            )
    shown = (Crop("GT", metrics, gt), *crops)
    lines = max(len(broken(crop.label, _cell_size(box)[0])) for crop in shown)
    cells = [_cell(crop, box, lines) for crop in shown]
    width, height = cells[0].size
    across = -(-len(cells) // 2) if len(cells) > 2 else len(cells)
    down = -(-len(cells) // across)
    tall = down * height + (down - 1) * _GAP
    left = _whole(gt, box, name, tall)
    picture = Image.new("RGB", (left.width + across * (width + _GAP) + 2 * _GAP, tall + 2 * _GAP), _WHITE)
    picture.paste(left, (_GAP, _GAP))
    for number, cell in enumerate(cells):
        row, column = divmod(number, across)
        picture.paste(cell, (left.width + 2 * _GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return np.asarray(picture)


def check_box(box: Box, image: Array) -> None:
    """Raise DataError if a box is empty or not inside an image."""
    left, top, right, bottom = box
    height, width = image.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise DataError(
            f"the box at {left},{top} of {right - left}x{bottom - top} is not inside the image of {width}x{height}"
        )


def stacked(grids: Sequence[Array]) -> Array:
    """Put grids below one another."""
    width = max(each.shape[1] for each in grids)
    return np.concatenate(
        [cv2.copyMakeBorder(each, 0, 0, 0, width - each.shape[1], cv2.BORDER_CONSTANT, value=_WHITE) for each in grids]
    )


def caption_names(metrics: Collection[str]) -> list[str]:
    """Return the metrics whose scores stand below a crop: PSNR and SSIM, or else the first two."""
    return [name for name in ("psnr", "ssim") if name in metrics] or list(metrics)[:2]


def caption(scores: Mapping[str, float]) -> str:
    """Return the scores of a whole image as text below its crop."""
    names = caption_names(scores)
    return " / ".join(f"{scores[name]:.2f}" if "psnr" in name else f"{scores[name]:.4f}" for name in names)


def _cell_size(box: Box) -> tuple[int, int, int]:
    """Return the width of a cell, and the width and the height of the enlarged crop in it."""
    width, height = box[2] - box[0], box[3] - box[1]
    factor = _CELL / max(width, height)
    enlarged = max(round(width * factor), 1), max(round(height * factor), 1)
    return max(enlarged[0], _CELL * 3 // 4), *enlarged


def _cell(crop: Crop, box: Box, lines: int) -> Image.Image:
    """Return the enlarged crop with its label below, in so many lines, and a line of scores."""
    left, top, right, bottom = box
    detail = crop.image[top:bottom, left:right]
    width, *size = _cell_size(box)
    factor = _CELL / max(detail.shape[:2])
    way = cv2.INTER_NEAREST if factor >= 2 else cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    enlarged = cv2.resize(detail, size, interpolation=way)
    picture = Image.new("RGB", (width, size[1] + (lines + 1) * _LINE + 4), _WHITE)
    picture.paste(Image.fromarray(enlarged), ((width - size[0]) // 2, 0))
    draw = ImageDraw.Draw(picture)
    label = broken(crop.label, width)
    _write(draw, label, width, size[1] + 3, _BLACK)
    _write(draw, [crop.scores], width, size[1] + 3 + len(label) * _LINE, _GREY)
    return picture


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], width: int, top: int, colour: tuple[int, int, int]) -> None:
    """Write lines in the middle, all of one size: smaller if one is too long, and shortened if it is still too long."""
    size = min(fitting_size(text, width) for text in lines)
    for number, text in enumerate(lines):
        place = (width / 2, top + number * _LINE)
        draw.text(place, shortened(text, width), fill=colour, font=font(size), anchor="ma")


def _whole(gt: Array, box: Box, name: str, tall: int) -> Image.Image:
    """Return the GT image with the box, with its name below, in a height of ``tall`` pixels."""
    line = 20
    ratio = min((tall - line) / gt.shape[0], 2.2 * tall / gt.shape[1])
    size = max(round(gt.shape[1] * ratio), 1), max(round(gt.shape[0] * ratio), 1)
    small = cv2.resize(gt, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)
    picture = Image.new("RGB", (size[0], tall), _WHITE)
    picture.paste(Image.fromarray(small), (0, 0))
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = (round(value * ratio) for value in box)
    draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=_FRAME, width=3)
    _write(draw, [name], size[0], size[1] + 3, _BLACK)
    return picture
