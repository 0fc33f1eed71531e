"""Luma and chroma of RGB tensors (ITU-R BT.601, studio swing, as MATLAB's ``rgb2ycbcr``), differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows: Y, Cb, Cr; each for R, G, B in [0, 1]. The results are levels of 0 to 255 before the division below.
_MATRIX = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_OFFSET = (16.0, 128.0, 128.0)


def ycbcr(image: Tensor) -> Tensor:
    """Convert (B, 3, H, W) RGB in [0, 1] to Y, Cb and Cr, (B, 3, H, W) in [16/255, 240/255]."""
    matrix = torch.tensor(_MATRIX, dtype=image.dtype, device=image.device)
    offset = torch.tensor(_OFFSET, dtype=image.dtype, device=image.device)
    converted = torch.einsum("bchw,dc->bdhw", image, matrix) + offset.view(1, 3, 1, 1)
    return converted / 255


def luma(image: Tensor) -> Tensor:
    """Return the Y channel (B, 1, H, W) of (B, 3, H, W) RGB in [0, 1]; an image of one channel is returned as it is."""
    return image if image.shape[1] == 1 else ycbcr(image)[:, :1]
