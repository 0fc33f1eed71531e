"""Find the quality of an earlier JPEG compression in the pixels of an image.

JPEG rounds each coefficient of its 8x8 blocks to a multiple of a step. After decoding, the coefficients of the pixels
still lie close to these multiples, whatever the file is in now: a PNG file, or a JPEG file of higher quality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

BLOCK = 8  # pixels along each side of JPEG's blocks
# The table for luminance of ITU-T T.81, K.1, in the order of the file (zigzag).
LUMINANCE = np.fromstring(
    "16 11 12 14 12 10 16 14 13 14 18 17 16 19 24 40 26 24 22 22 24 49 35 37 29 40 58 51 61 60 57 51 56 55 64 72 92 78 "
    "64 68 87 69 55 56 80 109 81 87 95 98 103 104 103 62 77 113 121 112 100 120 92 101 103 99",
    sep=" ",
)
_QUALITIES = np.arange(5, 97)
_COEFFICIENTS = 20  # the lowest ones of each block, without the mean
_MOST_VALUES = 300  # of one coefficient
_FEWEST_VALUES = 25  # in all
_LEAST_MATCH = 0.2  # 1 if all values are multiples of the steps, about 0 in other images
_LEAST_SIGNIFICANCE = 6.0  # standard deviations of the match in other images
_ROUNDING = 1.5  # decoding to whole levels moves a coefficient by less


def standard_tables(qualities: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return the tables for luminance of the IJG's library, (qualities, 64), in zigzag order."""
    factors = np.where(qualities < 50, 5000 / qualities, 200 - 2 * qualities)
    return np.clip((np.outer(factors, LUMINANCE) + 50) // 100, 1, 255)


def _zigzag() -> Iterator[tuple[int, int]]:
    """Yield row and column of each coefficient in zigzag order."""
    for diagonal in range(2 * BLOCK - 1):
        rows = range(max(0, diagonal - BLOCK + 1), min(diagonal, BLOCK - 1) + 1)
        yield from ((row, diagonal - row) for row in (rows if diagonal % 2 else reversed(rows)))


_STEPS = standard_tables(_QUALITIES)
_ORDER = tuple(_zigzag())
_TRANSFORM = np.ascontiguousarray(cv2.dct(np.eye(BLOCK, dtype=np.float32), flags=cv2.DCT_ROWS).T)


def earlier_quality(channels: Plane) -> int | None:
    """Return the quality, 5 to 96, of the JPEG compression that an image went through; None if it shows no sign of one.

    Args:
        channels: (H, W, 1 or 3) in [0, 255]; JPEG's blocks begin at the first row and column.
    """
    height, width = (side // BLOCK * BLOCK for side in channels.shape[:2])
    if not height * width:
        return None
    channels = channels[:height, :width]
    luma = channels @ np.array([0.299, 0.587, 0.114], np.float32) if channels.shape[2] == 3 else channels[..., 0]
    blocks = _TRANSFORM @ _in_blocks(luma) @ _TRANSFORM.T
    # Decoding cuts values to 0 and 255, which moves the coefficients of these blocks.
    whole = (_in_blocks(channels.min(axis=2)).min(axis=(1, 2)) > 0) & (
        _in_blocks(channels.max(axis=2)).max(axis=(1, 2)) < 255
    )
    found = _matching(np.abs(blocks[whole]))
    return _matching(np.abs(blocks)) if found is None and not whole.all() else found


def _in_blocks(plane: Plane) -> Plane:
    """Return the blocks of a plane, (blocks, 8, 8)."""
    rows, columns = (side // BLOCK for side in plane.shape)
    return plane.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)


def _matching(coefficients: Plane) -> int | None:
    """Return the quality whose steps the coefficients, (blocks, 8, 8) and not negative, are multiples of; None if none.

    For each quality and coefficient, the mean of cos(2 pi value / step) is 1 if all values are multiples, and about 0
    if they are anything else. The quality with the highest mean is returned if that is far above chance.
    """
    counts, matches = np.zeros(len(_QUALITIES)), np.zeros(len(_QUALITIES))
    for number in range(1, _COEFFICIENTS + 1):
        row, column = _ORDER[number]
        values = coefficients[:, row, column]
        values = np.unique(np.round(values[values > _ROUNDING], 1))  # repeated blocks count once
        if len(values) > _MOST_VALUES:
            values = values[np.linspace(0, len(values) - 1, _MOST_VALUES).astype(int)]
        steps, position = np.unique(_STEPS[:, number], return_inverse=True)
        multiples = values / steps[:, None]
        # Values close to 0 say nothing, and a step of 1 or 2 levels is lost in the rounding to whole levels.
        used = (multiples > 0.3) & (steps[:, None] >= 3)
        counts += used.sum(axis=1)[position]
        matches += (np.cos(2 * np.pi * multiples) * used).sum(axis=1)[position]
    mean = matches / np.maximum(counts, 1)
    found = (counts >= _FEWEST_VALUES) & (mean >= _LEAST_MATCH) & (mean * np.sqrt(2 * counts) >= _LEAST_SIGNIFICANCE)
    return int(_QUALITIES[np.argmax(np.where(found, mean, -math.inf))]) if found.any() else None
