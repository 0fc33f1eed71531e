"""Real-ESRGAN's sharpening (USM) for tensors on any device, used by models that sharpen the GT of a batch."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from safmn.degradations import operations


def sharpen(image: Tensor) -> Tensor:
    """Sharpen like :func:`safmn.degradations.operations.sharpen`: float32 (3, H, W) RGB in [0, 1], same shape."""
    line = cv2.getGaussianKernel(operations.USM_RADIUS, operations.USM_SIGMA)[:, 0]
    residual = image - _separable(image, line, line)
    mask = (residual.abs() * 255 > operations.USM_THRESHOLD).float()
    soft_mask = _separable(mask, line, line)
    sharp = (image + operations.USM_WEIGHT * residual).clamp_(0, 1)
    return soft_mask * sharp + (1 - soft_mask) * image


def _separable(image: Tensor, column: np.ndarray, row: np.ndarray) -> Tensor:
    return _filter(_filter(image, column[:, None]), row[None, :])


def _filter(image: Tensor, values: np.ndarray) -> Tensor:
    """Correlate every channel with (k, l) weights: (3, H, W) -> (3, H, W)."""
    tall, wide = values.shape
    height, width = image.shape[-2:]
    rows, columns = _mirrored(height, tall // 2, image.device), _mirrored(width, wide // 2, image.device)
    padded = image.index_select(-2, rows).index_select(-1, columns)
    weight = torch.from_numpy(values.astype(np.float32)).to(image.device).expand(3, 1, tall, wide)
    return functional.conv2d(padded[None], weight, groups=3)[0]


def _mirrored(length: int, radius: int, device: torch.device) -> Tensor:
    """Return the indices that mirror-pad an axis without repeating the edge; the pad may be wider than the axis."""
    index = np.abs(np.arange(-radius, length + radius))
    period = max(2 * (length - 1), 1)
    index = index % period
    return torch.from_numpy(np.minimum(index, period - index) if length > 1 else np.zeros_like(index)).to(device)
