"""What state an image is in: its JPEG quality, the blocks that JPEG leaves, its noise; and the weights that suit it.

The limits in :func:`suitable` were chosen on photographs and drawings other than those that
``scripts/zoo/measure_choice.py`` measures them on.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from safmn.inference.earlier_jpeg import BLOCK, earlier_quality, standard_tables
from safmn.value_types import Array

Plane = NDArray[np.float32]

_LEAST_SHARE = 0.4  # of the borders of blocks
_FEWEST = 6  # borders of blocks along each side, below which blocks are not looked for
_PATCH = 16  # pixels along each side of the patches in which noise is measured
_LARGEST = 1024  # noise and blocks are measured on at most this many rows and columns, in the middle
_POOR = 92  # highest JPEG quality that needs weights for compressed images
_POOR_PLAIN = 95  # the same for images with plain areas, such as screenshots, in which traces of JPEG show more
_PLAIN = 0.12  # levels of noise of grey values, below which an image has plain areas
_NOISY_COLOUR = 1.8  # levels
_STRONG = 2.5  # levels of noise in the differences of the channels, from which on the detail does not matter
_MOST_DETAIL = 4.0  # levels in the whole image, above which smoothing costs more than weaker noise
_EVEN_COLOUR = 1.9  # roughness of the whole image / of its plainest parts, up to which it is noise
# Grey noise: least levels, highest kurtosis, and most evenness as above. Textures and text look like noise by one of
# these, but not by all.
_NOISY_GREY = ((6.5, 3.85, math.inf), (9.0, 5.0, 1.3))


class Roughness(NamedTuple):
    """Standard deviation, in levels of 0 to 255, of what is neither constant nor linear over three pixels.

    Attributes:
        plain: in the plainest tenth of an image, where it is noise if there is any.
        whole: in the whole image: noise, and everything that is as fine.
        kurtosis: of the plainest fifth of an image: 3 for noise, and more for textures; 0 for an area of one value.
    """

    plain: float
    whole: float
    kurtosis: float


@dataclass(frozen=True)
class Condition:
    """The state of an image.

    Attributes:
        quality: quality of the JPEG file, 1 to 100; None if it is no JPEG file.
        earlier: quality of the JPEG compression that the pixels show signs of, 5 to 96; None without signs.
        blocked: whether neighbours differ more at the borders of 8x8 blocks than beside them, as JPEG leaves it.
        grey: roughness of the mean of the channels.
        colour: roughness of the differences of the channels, in which textures mostly cancel out and noise does not;
            0 for grey images.
    """

    quality: int | None
    earlier: int | None
    blocked: bool
    grey: Roughness
    colour: Roughness


def jpeg_quality(tables: dict[int, Any] | None) -> int | None:
    """Return the quality, 1 to 100, whose table for luminance is nearest to that of a file; None without tables.

    Args:
        tables: Pillow's ``image.quantization``: number of the table -> 64 divisors.
    """
    if not tables:
        return None
    table = np.sort(np.asarray(tables[min(tables)], np.float64).ravel())
    qualities = np.arange(1, 101)
    standard = np.sort(standard_tables(qualities), axis=1)
    distance = np.abs(np.log(standard) - np.log(np.maximum(table, 1))).sum(axis=1)
    return int(qualities[np.flatnonzero(distance == distance.min())[-1]])


def quality_of(path: str | os.PathLike[str]) -> int | None:
    """Return the quality that the tables of a JPEG file state; None for other files. Reads only the head."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return jpeg_quality(getattr(image, "quantization", None))
    except Exception:  # what is wrong with the file is said where its pixels are read
        return None


def _middle(pixels: Array) -> Plane:
    """Return the middle of an image as float32 (H, W, 1 or 3) in [0, 255]."""
    height, width = pixels.shape[:2]
    top, left = (max((side - _LARGEST) // 2, 0) // BLOCK * BLOCK for side in (height, width))
    part = pixels[top : top + _LARGEST, left : left + _LARGEST]
    part = part.reshape(*part.shape[:2], -1)
    part = part[..., :3] if part.shape[2] >= 3 else part[..., :1]
    result: Plane = part.astype(np.float32)
    return result / np.float32(257) if pixels.dtype == np.uint16 else result


def is_blocked(plane: Plane) -> bool:
    """Return :attr:`Condition.blocked` of grey values; the grid of the blocks may begin anywhere.

    It is decided by the number of borders, not by the mean of the differences, which strong edges raise at a few.
    """
    shares, borders = [], 0
    for values in (plane, plane.T):
        steps = np.abs(np.diff(values, axis=1)).mean(axis=0)  # (columns - 1,)
        if len(steps) < _FEWEST * BLOCK:
            return False
        higher = (steps[1:-1] > 1.05 * steps[:-2]) & (steps[1:-1] > 1.05 * steps[2:])
        shares.append(max(float(higher[phase::BLOCK].mean()) for phase in range(BLOCK)))
        borders += len(steps) // BLOCK
    # Without blocks the shares are about a third, with a spread of chance.
    return min(shares) >= _LEAST_SHARE and sum(shares) / 2 >= _LEAST_SHARE + 0.7 / math.sqrt(borders)


def roughness(plane: Plane) -> Roughness:
    """Return the roughness of a plane (H, W).

    The filter (Immerkaer, "Fast noise variance estimation", CVIU 1996) removes what is constant or linear.
    """
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    residual = cv2.filter2D(plane, cv2.CV_32F, kernel)[1:-1, 1:-1]
    rows, columns = (side // _PATCH for side in residual.shape)
    if not rows * columns:
        return Roughness(0.0, 0.0, 0.0)
    patches = residual[: rows * _PATCH, : columns * _PATCH].reshape(rows, _PATCH, columns, _PATCH)
    powers = np.square(patches).mean(axis=(1, 3)).ravel()
    plainest = np.argsort(powers)[: math.ceil(0.2 * len(powers))]
    fourth = np.square(np.square(patches)).mean(axis=(1, 3)).ravel()
    kurtosis = fourth[plainest] / np.maximum(np.square(powers[plainest]), 1e-12)
    return Roughness(
        float(np.sqrt(np.quantile(powers, 0.1))), float(np.sqrt(powers.mean())), float(np.median(kurtosis))
    )


def examine(pixels: Array, quality: int | None = None) -> Condition:
    """Return the state of an image.

    Args:
        pixels: uint8 or uint16; (H, W) grey, or (H, W, C), of which the colours come first.
        quality: of its file, if it is JPEG.
    """
    channels = _middle(pixels)
    grey = np.ascontiguousarray(channels.mean(axis=2))
    colour = Roughness(0.0, 0.0, 0.0)
    if channels.shape[2] == 3:
        red, green, blue = (channels[..., channel] for channel in range(3))
        pair = [roughness(np.ascontiguousarray(one - green) / np.float32(math.sqrt(2))) for one in (red, blue)]
        colour = min(pair)
    return Condition(quality, earlier_quality(channels), is_blocked(grey), roughness(grey), colour)


def suitable(condition: Condition) -> tuple[bool, str]:
    """Return whether an image needs weights that remove noise and compression, and why, as a phrase."""
    noise = _noise(condition)
    if noise:
        return True, f"noise of about {noise:.0f} levels"
    qualities = [quality for quality in (condition.quality, condition.earlier) if quality is not None]
    if qualities:
        quality = min(qualities)
        name = f"JPEG of quality {quality}" if quality == condition.quality else f"JPEG of quality {quality} before"
        if quality <= (_POOR_PLAIN if condition.grey.plain < _PLAIN else _POOR):
            return True, name
        return False, f"{name}, good enough"
    if condition.blocked:
        return True, "blocks of an earlier JPEG compression"
    return False, "no sign of noise or compression"


def _noise(condition: Condition) -> float:
    """Return the noise of an image in levels, if it is worth removing; otherwise 0."""
    grey, colour = condition.grey, condition.colour
    is_even = colour.plain >= _NOISY_COLOUR and colour.whole <= _EVEN_COLOUR * colour.plain
    if is_even and (colour.plain >= _STRONG or grey.whole <= _MOST_DETAIL):
        return colour.plain
    if any(
        grey.plain >= least and grey.kurtosis <= kurtosis and grey.whole <= even * grey.plain
        for least, kurtosis, even in _NOISY_GREY
    ):
        return grey.plain
    return 0.0
