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

from safmn.value_types import Array

Plane = NDArray[np.float32]

_BLOCK = 8  # pixels along each side of JPEG's blocks
_LEAST_SHARE = 0.4  # of the borders of blocks
_FEWEST = 6  # borders of blocks along each side, below which blocks are not looked for
_PATCH = 16  # pixels along each side of the patches in which noise is measured
_LARGEST = 1024  # noise and blocks are measured on at most this many rows and columns, in the middle
# JPEG qualities, each with the detail up to which an image needs weights for compressed ones: these smooth, so the more
# detail an image has, the stronger the compression must be.
_LIMITS = ((65, math.inf), (77, 4.0), (87, 1.5))
_NOISY_COLOUR, _NOISY_GREY = 3.5, 9.0  # levels; a grey texture can look like noise of a few levels
_EVEN_COLOUR, _EVEN_GREY = 1.4, 1.3  # roughness of the whole image / of its plainest parts, up to which it is noise
# The table for luminance of ITU-T T.81, K.1, in the order of the file (zigzag).
_LUMINANCE = np.fromstring(
    "16 11 12 14 12 10 16 14 13 14 18 17 16 19 24 40 26 24 22 22 24 49 35 37 29 40 58 51 61 60 57 51 56 55 64 72 92 78 "
    "64 68 87 69 55 56 80 109 81 87 95 98 103 104 103 62 77 113 121 112 100 120 92 101 103 99",
    sep=" ",
)


class Roughness(NamedTuple):
    """Standard deviation, in levels of 0 to 255, of what is neither constant nor linear over three pixels.

    Attributes:
        plain: in the plainest tenth of an image, where it is noise if there is any.
        whole: in the whole image: noise, and everything that is as fine.
    """

    plain: float
    whole: float

    def is_noise(self, least: float, even: float) -> bool:
        """Return whether it is at least ``least``, and at most ``even`` times as much in the whole image."""
        return self.plain >= least and self.whole <= even * self.plain


@dataclass(frozen=True)
class Condition:
    """The state of an image.

    Attributes:
        quality: quality of the JPEG file, 1 to 100; None if it is no JPEG file.
        blocked: whether neighbours differ more at the borders of 8x8 blocks than beside them, as JPEG leaves it.
        grey: roughness of the mean of the channels.
        colour: roughness of the differences of the channels, in which textures mostly cancel out and noise does not;
            0 for grey images.
    """

    quality: int | None
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
    factors = np.where(qualities < 50, 5000 / qualities, 200 - 2 * qualities)  # of the IJG's library
    standard = np.sort(np.clip((np.outer(factors, _LUMINANCE) + 50) // 100, 1, 255), axis=1)
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
    top, left = (max((side - _LARGEST) // 2, 0) // _BLOCK * _BLOCK for side in (height, width))
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
        if len(steps) < _FEWEST * _BLOCK:
            return False
        higher = (steps[1:-1] > 1.05 * steps[:-2]) & (steps[1:-1] > 1.05 * steps[2:])
        shares.append(max(float(higher[phase::_BLOCK].mean()) for phase in range(_BLOCK)))
        borders += len(steps) // _BLOCK
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
        return Roughness(0.0, 0.0)
    patches = residual[: rows * _PATCH, : columns * _PATCH].reshape(rows, _PATCH, columns, _PATCH)
    powers = np.square(patches).mean(axis=(1, 3))
    return Roughness(float(np.sqrt(np.quantile(powers, 0.1))), float(np.sqrt(powers.mean())))


def examine(pixels: Array, quality: int | None = None) -> Condition:
    """Return the state of an image.

    Args:
        pixels: uint8 or uint16; (H, W) grey, or (H, W, C), of which the colours come first.
        quality: of its file, if it is JPEG.
    """
    channels = _middle(pixels)
    grey = np.ascontiguousarray(channels.mean(axis=2))
    colour = Roughness(0.0, 0.0)
    if channels.shape[2] == 3:
        red, green, blue = (channels[..., channel] for channel in range(3))
        pair = [roughness(np.ascontiguousarray(one - green) / np.float32(math.sqrt(2))) for one in (red, blue)]
        colour = min(pair)
    return Condition(quality, is_blocked(grey), roughness(grey), colour)


def suitable(condition: Condition) -> tuple[bool, str]:
    """Return whether an image needs weights that remove noise and compression, and why, as a phrase."""
    quality = condition.quality
    if quality is not None:
        limit = next((detail for best, detail in _LIMITS if quality <= best), 0.0)
        if condition.grey.whole <= limit:
            return True, f"JPEG of quality {quality}" + ("" if math.isinf(limit) else " without much detail")
    if condition.colour.is_noise(_NOISY_COLOUR, _EVEN_COLOUR):
        return True, f"noise of about {condition.colour.plain:.0f} levels"
    if condition.grey.is_noise(_NOISY_GREY, _EVEN_GREY):
        return True, f"noise of about {condition.grey.plain:.0f} levels"
    if quality is None and condition.blocked:
        return True, "blocks of an earlier JPEG compression"
    if quality is not None:
        return False, f"JPEG of quality {quality}, good enough for its detail"
    return False, "no sign of noise or compression"
