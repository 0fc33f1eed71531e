"""JPEG on tensors of any device: what libjpeg does with the image between encoding and decoding, without the file.

Baseline JPEG with 4:2:0 chroma (ITU-T T.81 with the tables of its annex K, JFIF's colour transform), with the integer
arithmetic of libjpeg-turbo's defaults, so that it gives the same bytes. The entropy coding is lossless and left out.
"""

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
# The same in 1/65536, as libjpeg has them, with what is added for rounding: three factors and the offset of each row.
_HALF = 1 << 15
_TO_YCBCR_16 = (
    (19595, 38470, 7471, _HALF),
    (-11059, -21709, 32768, (128 << 16) + _HALF - 1),
    (32768, -27439, -5329, (128 << 16) + _HALF - 1),
)
_TO_RGB_16 = ((0, 91881, _HALF), (-22554, -46802, _HALF), (116130, 0, _HALF))  # what Cb and Cr add to Y
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
# The left half of libjpeg's 8-point transform; the right half mirrors it, with the sign changed in the odd rows. These
# are what its factored form amounts to: the roundings of its 12 constants make -11362 of one and -11363 of another.
_ISLOW = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)
_BLOCK = 8
_MCU = 16  # a block of subsampled chroma


def libjpeg(image: Tensor, quality: int) -> Tensor:
    """What libjpeg gives back for the image.

    The same 8-bit image as libjpeg-turbo decodes (with its default, exact integer transform and smooth upsampling). On
    devices without double precision (MPS) one value in some thousands is a level off.

    Args:
        image: (3, H, W) RGB in [0, 1]; rounded to 8 bits first.
        quality: 1 to 100.

    Returns:
        (3, H, W), multiples of 1/255.
    """
    height, width = image.shape[-2:]
    levels = (image.clamp(0, 1) * 255).round_().int()
    padded = _pad(_fixed_point(_TO_YCBCR_16, levels).float(), "replicate")  # (3, H', W')
    tables = [_table(kind, quality, image.device) for kind in ("luma", "chroma")]
    luma = _integer_quantise(padded[:1], tables[0])
    rows, columns = -(-height // 2), -(-width // 2)  # of chroma samples that belong to the image
    chroma = _subsample(padded[1:])
    chroma[:, rows:] = chroma[:, rows - 1 : rows]
    upsample = _smooth_upsample if columns > 2 else _repeat  # libjpeg leaves very narrow images unsmoothed
    chroma = upsample(_integer_quantise(chroma, tables[1])[:, :rows, :columns])
    y = luma[:, :height, :width].int()
    difference = chroma[:, :height, :width].int() - 128
    return (y + _fixed_point(_TO_RGB_16, difference)).clamp_(0, 255).float().div_(255)


def diffjpeg(image: Tensor, quality: float) -> Tensor:
    """What BasicSR's ``DiffJPEG(differentiable=False)`` gives for the image.

    It rounds nothing but the coefficients, pads with black, repeats chroma samples, and has the luma table transposed.

    Args:
        image: (3, H, W) RGB in [0, 1].
        quality: 1 to 100, any number.

    Returns:
        (3, H, W) in [0, 1].
    """
    height, width = image.shape[-2:]
    padded = _pad(image * 255, "constant")
    ycbcr = _matrix(_TO_YCBCR, padded) + _offset(padded)
    factor = _factor(quality)
    luma = _quantise(ycbcr[:1], factor * _base_table("luma", image.device).T)
    chroma = functional.avg_pool2d(ycbcr[1:], 2)
    chroma = _repeat(_quantise(chroma, factor * _base_table("chroma", image.device)))
    rgb = _matrix(_TO_RGB, torch.cat([luma, chroma]) - _offset(padded))
    return rgb.clamp_(0, 255).div_(255)[:, :height, :width]


def _pad(image: Tensor, mode: str) -> Tensor:
    """To multiples of 16, at the bottom and on the right."""
    height, width = image.shape[-2:]
    return functional.pad(image[None], (0, -width % _MCU, 0, -height % _MCU), mode=mode)[0]


def _matrix(rows: tuple[tuple[float, ...], ...], image: Tensor) -> Tensor:
    """A 3x3 matrix times the channels of (3, H, W)."""
    return torch.tensordot(torch.tensor(rows, device=image.device), image, dims=1)


def _fixed_point(rows: tuple[tuple[int, ...], ...], channels: Tensor) -> Tensor:
    """Rows of factors and an offset, in 1/65536, applied to the channels of an int32 (C, H, W), rounded down."""
    results = []
    for *factors, offset in rows:
        total = channels[0] * factors[0] + offset
        for factor, channel in zip(factors[1:], channels[1:], strict=True):
            total += factor * channel
        results.append(total >> 16)
    return torch.stack(results)


def _offset(like: Tensor) -> Tensor:
    """128 on the chroma channels: (3, 1, 1)."""
    return torch.tensor([0.0, 128.0, 128.0], device=like.device).view(3, 1, 1)


def _factor(quality: float) -> float:
    """What multiplies the tables; at quality 100 it would be 0, and dividing by it NaN."""
    return max(5000 / quality if quality < 50 else 200 - 2 * quality, 1) / 100


@lru_cache(maxsize=8)
def _base_table(kind: str, device: torch.device) -> Tensor:
    """Quantisation steps at quality 50: (8, 8), rows are vertical frequencies."""
    if kind == "luma":
        return torch.tensor(_LUMA_TABLE, dtype=torch.float32, device=device)
    table = torch.full((_BLOCK, _BLOCK), 99.0)
    table[:4, :4] = torch.tensor(_CHROMA_CORNER)
    return table.to(device)


def _table(kind: str, quality: int, device: torch.device) -> Tensor:
    """libjpeg's integer steps for a quality."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((_base_table(kind, device) * percent + 50) / 100).floor_().clamp_(1, 255)


@lru_cache(maxsize=8)
def _transform(device: torch.device) -> Tensor:
    """The orthonormal 8-point DCT-II: (8, 8), a row for each frequency."""
    k, n = np.arange(_BLOCK)[:, None], np.arange(_BLOCK)[None, :]
    rows = np.cos((2 * n + 1) * k * np.pi / (2 * _BLOCK)) * np.sqrt(2 / _BLOCK)
    rows[0] /= np.sqrt(2)
    return torch.tensor(rows, dtype=torch.float32, device=device)


def _up(values: Tensor) -> Tensor:
    """Round; halves go up."""
    return (values + 0.5).floor_()


def _away(values: Tensor) -> Tensor:
    """Round; halves go away from zero."""
    return _up(values.abs()) * values.sign()


@lru_cache(maxsize=8)
def _integer_transform(device: torch.device) -> Tensor:
    """sqrt(8) times the DCT-II as libjpeg's integer transform has it, with 13 bits below the point: (8, 8).

    In double precision, where the device has it: products and sums of the integers concerned are exact then.
    """
    half = torch.tensor(_ISLOW, dtype=torch.float32 if device.type == "mps" else torch.float64)
    sign = torch.tensor([1.0, -1.0] * 4).view(_BLOCK, 1)
    return (torch.cat([half, sign * half.flip(1)], dim=1) / (1 << 13)).to(device)


def _to_blocks(planes: Tensor) -> Tensor:
    """(C, H, W) in 0..255 -> (C, H/8, W/8, 8, 8) around zero."""
    count, height, width = planes.shape
    return (planes - 128).view(count, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).transpose(2, 3)


def _from_blocks(blocks: Tensor) -> Tensor:
    count, down, across = blocks.shape[:3]
    return blocks.transpose(2, 3).reshape(count, down * _BLOCK, across * _BLOCK) + 128


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """Round the DCT coefficients of 8x8 blocks to multiples of the table: (C, H, W) -> (C, H, W)."""
    dct = _transform(planes.device)
    coefficients = ((dct @ _to_blocks(planes) @ dct.T) / table).round_() * table
    return _from_blocks(dct.T @ coefficients @ dct)


def _integer_quantise(planes: Tensor, table: Tensor) -> Tensor:
    """As :func:`_quantise`, with each pass rounded to the bits that libjpeg's integer transforms ("islow") keep.

    Two bits below the point are kept between the passes, three in the coefficients, none at the end.
    """
    dct = _integer_transform(planes.device)
    rows = _up(4 * (_to_blocks(planes).to(dct.dtype) @ dct.T))
    eightfold = _up(dct @ rows / 4)
    coefficients = _away(eightfold / (8 * table)) * table
    columns = _up(4 * (dct.T @ coefficients))
    return _from_blocks(_up(columns @ dct / 32)).clamp_(0, 255)


def _subsample(chroma: Tensor) -> Tensor:
    """Means of 2x2 pixels; halves are rounded down and up in turn, as libjpeg does: (2, H, W) -> (2, H/2, W/2)."""
    sums = functional.avg_pool2d(chroma, 2) * 4
    bias = torch.arange(sums.shape[-1], device=chroma.device) % 2 + 1
    return ((sums + bias) / 4).floor_()


def _repeat(chroma: Tensor) -> Tensor:
    """Twice the size, every sample four times: (2, h, w) -> (2, 2h, 2w)."""
    return chroma.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def _smooth_upsample(chroma: Tensor) -> Tensor:
    """Twice the size with weights 9, 3, 3, 1 on the four nearest samples: (2, h, w) -> (2, 2h, 2w)."""
    rows = _spread(chroma, -2)  # times 4
    columns = _spread(rows, -1)  # times 16
    bias = 8 - torch.arange(columns.shape[-1], device=chroma.device) % 2
    return ((columns + bias) / 16).floor_()


def _spread(planes: Tensor, dim: int) -> Tensor:
    """Two samples for each, 3/4 itself and 1/4 its neighbour on that side, times 4; the border is its own neighbour."""
    length = planes.shape[dim]
    order = torch.arange(length, device=planes.device)
    before = planes.index_select(dim, (order - 1).clamp_(min=0))
    after = planes.index_select(dim, (order + 1).clamp_(max=length - 1))
    return torch.stack([3 * planes + before, 3 * planes + after], dim=dim).flatten(dim - 1, dim)
