"""Colour conversion, and conversion between 8-bit images and the networks' tensors."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from safmn.errors import DataError
from safmn.value_types import Array

# ITU-R BT.601, studio swing, as in MATLAB's rgb2ycbcr: Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)


def rgb_to_y(image: Array) -> Array:
    """Return the Y channel (BT.601, as in MATLAB's ``rgb2ycbcr``), not rounded.

    Args:
        image: (H, W, 3) RGB with values in [0, 255], of any numeric type.

    Returns:
        (H, W) float64 with values in [16, 235].

    Raises:
        DataError: the array is not (H, W, 3).
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"rgb_to_y needs an (H, W, 3) RGB array, not one of shape {image.shape}")
    red, green, blue = (image[..., channel] * np.float64(_LUMA[channel]) for channel in range(3))
    return np.asarray(red + green + blue + 16.0)


def to_tensor(image: Array) -> torch.Tensor:
    """Convert uint8 or uint16 (H, W, C) to contiguous float32 (C, H, W) in [0, 1]; (H, W) gives one channel.

    Raises:
        DataError: the type or the number of dimensions is another one.
    """
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3):
        raise DataError(f"to_tensor needs a uint8 or uint16 (H, W, C) array, not {image.dtype} of shape {image.shape}")
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)  # (C, H, W)
    # Copy even an array that counts as contiguous: numpy ignores the stride of an axis of length 1, but torch refuses a
    # negative one, which a flip leaves there.
    return torch.from_numpy(planes.copy(order="C")).to(torch.float32).div_(float(np.iinfo(image.dtype).max))


def to_uint8(tensor: torch.Tensor) -> Array:
    """Convert float (C, H, W) or (B, C, H, W) in [0, 1] to uint8 (H, W, C) or (B, H, W, C).

    Values are clamped, multiplied by 255 in float32 and rounded half to even, as in BasicSR's ``tensor2img``.

    Raises:
        DataError: the number of dimensions is another one.
    """
    if tensor.ndim not in (3, 4):
        raise DataError(f"to_uint8 needs a (C, H, W) or (B, C, H, W) tensor, not one of shape {tuple(tensor.shape)}")
    return to_levels(tensor, 8)


def to_levels(tensor: torch.Tensor, bits: int) -> Array:
    """Convert like :func:`to_uint8` to levels of 8 bits (uint8) or 16 bits (uint16)."""
    kind, white = (np.uint8, 255.0) if bits == 8 else (np.uint16, 65535.0)
    levels = tensor.detach().to(torch.float32).clamp(0, 1).mul_(white).round_()
    with np.errstate(invalid="ignore"):  # NaN
        planes = levels.cpu().numpy().astype(kind)
    if planes.ndim == 3 and len(planes) > 1:
        image: Array = cv2.merge(tuple(planes))  # several times as fast as numpy
        return image
    return np.ascontiguousarray(np.moveaxis(planes, -3, -1))
