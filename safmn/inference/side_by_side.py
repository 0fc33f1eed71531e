"""Side-by-side pictures: several versions of an image, with labels and an enlarged detail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from safmn.errors import DataError
from safmn.imaging import lettering
from safmn.value_types import Array

Box: TypeAlias = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels of the largest panel."""

_BACKGROUND, _TEXT, _FRAME = (24, 24, 27), (244, 244, 245), (250, 204, 21)
_MARGIN = 12


def comparison(panels: Mapping[str, Array], *, box: Box | None = None, width: int = 480) -> Array:
    """Put images of the same scene side by side, each with its label above and an enlarged detail below.

    Args:
        panels: label -> uint8 (H, W, 3) RGB. Smaller images, such as the LR image, are enlarged without smoothing, so
            that their pixels are visible.
        box: the detail, marked in every panel; None takes the part of the last panel with the most structure.
        width: width of a panel in pixels.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: there is no panel, a panel is not such an image, or ``box`` lies outside the image.
    """
    for label, image in panels.items():
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise DataError(f"panel {label!r}: give uint8 (H, W, 3), not {image.dtype} {image.shape}")
    if not panels:
        raise DataError("a comparison needs at least one panel")
    size = max((image.shape[:2] for image in panels.values()), key=lambda shape: shape[0] * shape[1])
    full = {label: _enlarged(image, size) for label, image in panels.items()}
    box = box or busiest_box(full[list(full)[-1]])
    columns = [_column(label, image, box, width) for label, image in full.items()]
    gap = np.full((columns[0].shape[0], _MARGIN, 3), _BACKGROUND, np.uint8)
    parts = [gap]
    for column in columns:
        parts += [column, gap]
    return np.hstack(parts)


def busiest_box(image: Array, part: float = 0.25) -> Box:
    """Return the square with the most structure (largest mean gradient).

    Args:
        image: uint8 (H, W, 3).
        part: side of the square relative to the image's shorter side, 0 to 1.
    """
    height, width = image.shape[:2]
    side = max(int(min(height, width) * part), 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    slope = np.abs(cv2.Sobel(grey, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return densest_box(slope, side)


def densest_box(values: Array, side: int) -> Box:
    """Return the square with the largest mean of ``values``, float (H, W); ``side`` is at most H and W."""
    height, width = values.shape
    mean = cv2.boxFilter(values, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_REFLECT)
    inside = mean[: height - side + 1, : width - side + 1]
    top, left = (int(i) for i in np.unravel_index(np.argmax(inside), inside.shape))
    return left, top, left + side, top + side


def _enlarged(image: Array, size: tuple[int, int]) -> Array:
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST))


def _column(label: str, image: Array, box: Box, width: int) -> Array:
    """Return label, image with the marked box, and detail, one below the other."""
    left, top, right, bottom = box
    height = max(round(image.shape[0] * width / image.shape[1]), 1)
    shrunk = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if width < image.shape[1] else 2)
    detail = image[max(top, 0) : bottom, max(left, 0) : right]
    if not detail.size:
        raise DataError(f"box {box} lies outside the image of {image.shape[1]}x{image.shape[0]} pixels")
    detail_height = max(round(detail.shape[0] * width / detail.shape[1]), 1)
    enlarged = cv2.resize(detail, (width, detail_height), interpolation=cv2.INTER_NEAREST)
    font = lettering.font(max(width // 20, 12))
    bar = int(font.size * 1.8) if isinstance(font, ImageFont.FreeTypeFont) else 24
    picture = Image.new("RGB", (width, bar + height + detail_height + 2 * _MARGIN), _BACKGROUND)
    picture.paste(Image.fromarray(shrunk), (0, bar))
    picture.paste(Image.fromarray(enlarged), (0, bar + height + _MARGIN))
    draw = ImageDraw.Draw(picture)
    draw.text((2, bar // 2), label, fill=_TEXT, font=font, anchor="lm")
    ratio = width / image.shape[1]
    marked = [left * ratio, bar + top * ratio, right * ratio, bar + bottom * ratio]
    draw.rectangle(marked, outline=_FRAME, width=max(width // 240, 1))
    below = bar + height + _MARGIN
    draw.rectangle((0, below, width - 1, below + detail_height - 1), outline=_FRAME, width=max(width // 240, 1))
    return np.asarray(picture)
