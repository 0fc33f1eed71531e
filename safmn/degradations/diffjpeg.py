"""BasicSR's differentiable JPEG (``DiffJPEG``) on tensors: 4:2:0 chroma, no rounding to 8 bits."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_CORNER = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))  # the rest is 99
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
_BLOCK = 8
_MCU = 16  # a block of subsampled chroma


def diffjpeg(image: Tensor, quality: float) -> Tensor:
    """Return the image as BasicSR's ``DiffJPEG(differentiable=False)`` compresses it.

    It rounds only the coefficients, pads with black, repeats chroma samples, and uses a transposed luma table.

    Args:
        image: (3, H, W) RGB in [0, 1].
        quality: 1 to 100; need not be an integer.

    Returns:
        (3, H, W) in [0, 1].
    """
    height, width = image.shape[-2:]
    padded = _pad(image * 255)
    ycbcr = _matrix(_TO_YCBCR, padded) + _offset(padded)
    factor = _factor(quality)
    luma = _quantise(ycbcr[:1], factor * _base_table("luma", image.device).T)
    chroma = functional.avg_pool2d(ycbcr[1:], 2)
    chroma = _repeat(_quantise(chroma, factor * _base_table("chroma", image.device)))
    rgb = _matrix(_TO_RGB, torch.cat([luma, chroma]) - _offset(padded))
    return rgb.clamp_(0, 255).div_(255)[:, :height, :width]


def _pad(image: Tensor) -> Tensor:
    """Pad with black at the bottom and right to multiples of 16."""
    height, width = image.shape[-2:]
    return functional.pad(image[None], (0, -width % _MCU, 0, -height % _MCU))[0]


def _matrix(rows: tuple[tuple[float, ...], ...], image: Tensor) -> Tensor:
    """Multiply the channels of (3, H, W) by a 3x3 matrix."""
    return torch.tensordot(torch.tensor(rows, device=image.device), image, dims=1)


def _offset(like: Tensor) -> Tensor:
    """Return the channel offsets, 128 for chroma: (3, 1, 1)."""
    return torch.tensor([0.0, 128.0, 128.0], device=like.device).view(3, 1, 1)


def _factor(quality: float) -> float:
    """Return the factor on the tables. The lower limit avoids 0 at quality 100, which would lead to NaN."""
    return max(5000 / quality if quality < 50 else 200 - 2 * quality, 1) / 100


@lru_cache(maxsize=8)
def _base_table(kind: str, device: torch.device) -> Tensor:
    """Return the quantisation steps at quality 50: (8, 8), rows are vertical frequencies."""
    if kind == "luma":
        return torch.tensor(_LUMA_TABLE, dtype=torch.float32, device=device)
    table = torch.full((_BLOCK, _BLOCK), 99.0)
    table[:4, :4] = torch.tensor(_CHROMA_CORNER)
    return table.to(device)


@lru_cache(maxsize=8)
def _transform(device: torch.device) -> Tensor:
    """Return the orthonormal 8-point DCT-II matrix: (8, 8), one row per frequency."""
    k, n = np.arange(_BLOCK)[:, None], np.arange(_BLOCK)[None, :]
    rows = np.cos((2 * n + 1) * k * np.pi / (2 * _BLOCK)) * np.sqrt(2 / _BLOCK)
    rows[0] /= np.sqrt(2)
    return torch.tensor(rows, dtype=torch.float32, device=device)


def _to_blocks(planes: Tensor) -> Tensor:
    """Split into blocks centred on zero: (C, H, W) in 0..255 -> (C, H/8, W/8, 8, 8)."""
    count, height, width = planes.shape
    return (planes - 128).view(count, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).transpose(2, 3)


def _from_blocks(blocks: Tensor) -> Tensor:
    count, down, across = blocks.shape[:3]
    return blocks.transpose(2, 3).reshape(count, down * _BLOCK, across * _BLOCK) + 128


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """Round the DCT coefficients of each 8x8 block to multiples of the table: (C, H, W) -> (C, H, W)."""
    dct = _transform(planes.device)
    coefficients = ((dct @ _to_blocks(planes) @ dct.T) / table).round_() * table
    return _from_blocks(dct.T @ coefficients @ dct)


def _repeat(chroma: Tensor) -> Tensor:
    """Double the size by repeating each sample four times: (2, h, w) -> (2, 2h, 2w)."""
    return chroma.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
