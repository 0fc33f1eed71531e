"""A second, readable implementation of SAFMN from the paper's formulas: the reference for the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def plain_safmn(x: Tensor, weights: Mapping[str, Tensor], n_blocks: int, scale: int) -> Tensor:
    """Compute the published forward pass, with every operation written out.

    Args:
        x: (B, 3, h, w).
        weights: state dict of a SAFMN.
        n_blocks: number of its blocks.
        scale: upscaling factor.

    Returns:
        (B, 3, h * scale, w * scale).
    """

    def conv(x: Tensor, name: str, padding: int, groups: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return weights[f"{name}.weight"][:, None, None] * x + weights[f"{name}.bias"][:, None, None]

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))

    def modulate(x: Tensor, name: str) -> Tensor:
        height, width = x.shape[-2:]
        levels = []
        for level, part in enumerate(x.chunk(4, dim=1)):
            if level > 0:
                part = F.adaptive_max_pool2d(part, (height // 2**level, width // 2**level))
            part = conv(part, f"{name}.mfr.{level}", padding=1, groups=part.shape[1])
            rows = torch.arange(height) * part.shape[2] // height
            columns = torch.arange(width) * part.shape[3] // width
            levels.append(part[:, :, rows][:, :, :, columns])
        return gelu(conv(torch.cat(levels, 1), f"{name}.aggr", padding=0)) * x

    first = x = conv(x, "to_feat", padding=1)
    for block in (f"feats.{i}" for i in range(n_blocks)):
        x = modulate(norm(x, f"{block}.norm1"), f"{block}.safm") + x
        mixed = gelu(conv(norm(x, f"{block}.norm2"), f"{block}.ccm.ccm.0", padding=1))
        x = conv(mixed, f"{block}.ccm.ccm.2", padding=0) + x
    return F.pixel_shuffle(conv(x + first, "to_img.0", padding=1), scale)
