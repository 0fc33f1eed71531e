"""Building blocks that several networks of the SAFMN family share.

Sun, Dong, Tang and Pan: Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution, ICCV 2023
(arXiv 2302.13800); https://github.com/sunny2109/SAFMN. The parameters have the names of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.archs.receptive import Conv, PooledConv
from safmn.errors import OptionError


def max_pool(x: Tensor, factor: int) -> Tensor:
    """Max-pool (B, C, h, w) adaptively to ``(h // factor, w // factor)``, at least one cell per side.

    If both sides are multiples of ``factor``, all windows have the same size. Plain max pooling then gives the same
    values bit for bit and is much faster.
    """
    h, w = x.shape[-2:]
    if h % factor == 0 and w % factor == 0:
        return F.max_pool2d(x, factor)  # (B, C, h / factor, w / factor)
    return F.adaptive_max_pool2d(x, (max(h // factor, 1), max(w // factor, 1)))


def spread(pooled: Tensor, size: Sequence[int], factor: int) -> Tensor:
    """Enlarge the result of :func:`max_pool` bilinearly to its original ``size`` (h, w): (B, C, h, w).

    If both sides are multiples of ``factor``, the factor is passed instead of the size. The values are the same, and
    exported graphs need no arithmetic on shapes.
    """
    h, w = size
    if h % factor == 0 and w % factor == 0:
        return F.interpolate(pooled, scale_factor=float(factor), mode="bilinear", align_corners=False)
    return F.interpolate(pooled, size=(h, w), mode="bilinear", align_corners=False)


def enlarge(image: Tensor, scale: int) -> Tensor:
    """Enlarge (B, C, h, w) bilinearly to (B, C, h * scale, w * scale), with half-pixel centres (the image skip)."""
    return F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)


def mirrored(x: Tensor, dim: int, multiple: int) -> Tensor:
    """Return ``x`` padded at the end of ``dim`` to a multiple of ``multiple``, mirrored without repeating the edge.

    This pads like :class:`safmn.inference.tiling.TiledFrame`, but with operations that graphs support. Reflection
    padding cannot be used, because in graphs as in torch it must be shorter than the image.
    """
    length = x.shape[dim]
    period = 2 * length - 2 + 1 // length  # period of the endlessly mirrored image; 1 for a single pixel
    index = torch.arange((length + multiple - 1) // multiple * multiple, device=x.device) % period
    return x.index_select(dim, torch.minimum(index, period - index))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, (B, C, h, w) to (B, C, h, w), affine.

    Up to rounding it equals the published implementation, which is written in elementwise operations.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (B, C, h, w). The result is channels-last in memory."""
        x = x.permute(0, 2, 3, 1)  # (B, h, w, C)
        if x.requires_grad and x.device.type == "cpu" and x.dtype.itemsize < 4:
            # On a CPU torch's half-precision gradient is slower than a conversion to float32 and back.
            normed = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps)
            x = normed.to(x.dtype)
        else:
            x = F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)  # (B, C, h, w)


class CCM(nn.Module):
    """Convolutional channel mixer: 3x3 convolution to ``int(dim * ffn_scale)`` channels, GELU, 1x1 back to ``dim``."""

    def __init__(self, dim: int, ffn_scale: float = 2.0, bias: bool = True) -> None:
        super().__init__()
        hidden = int(dim * ffn_scale)
        self.ccm = nn.Sequential(
            nn.Conv2d(dim, hidden, 3, 1, 1, bias=bias), nn.GELU(), nn.Conv2d(hidden, dim, 1, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        mixed: Tensor = self.ccm(x)
        return mixed


class SAFM(nn.Module):
    """Spatially-adaptive feature modulation: multiply the input by a gate computed from it at several resolutions.

    Args:
        dim: channels, a multiple of the number of resolutions (by default four). Each resolution gets an equal part.
        factors: pooling factors of all parts after the first, which is not pooled.
        bias: whether the convolutions have a bias.

    Raises:
        OptionError: ``dim`` is not such a multiple.
    """

    def __init__(self, dim: int, factors: Sequence[int] = (2, 4, 8), bias: bool = True) -> None:
        super().__init__()
        levels = len(factors) + 1
        if dim % levels:
            raise OptionError(f"dim is {dim}; it must be a multiple of {levels}.")
        chunk = dim // levels
        self.factors = tuple(factors)
        self.mfr = nn.ModuleList(nn.Conv2d(chunk, chunk, 3, 1, 1, groups=chunk, bias=bias) for _ in range(levels))
        self.aggr = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        size = x.shape[-2:]
        full, *coarse = x.chunk(len(self.factors) + 1, dim=1)  # (B, dim / 4, h, w) each
        levels = [self.mfr[0](full)]
        for part, factor, conv in zip(coarse, self.factors, list(self.mfr)[1:], strict=True):
            part = conv(max_pool(part, factor))  # (B, dim / 4, h // factor, w // factor)
            levels.append(F.interpolate(part, size=size, mode="nearest"))  # (B, dim / 4, h, w)
        return F.gelu(self.aggr(torch.cat(levels, dim=1))) * x


class FMM(nn.Module):
    """Feature mixing module, the block of SAFMN: ``x + SAFM(norm1(x))``, then ``x + CCM(norm2(x))``."""

    window = 8
    # The path with the largest receptive field: the coarsest pooling, then the channel mixer's 3x3 convolution.
    steps = (PooledConv(window), Conv())

    def __init__(self, dim: int, ffn_scale: float = 2.0) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(dim)
        self.norm2 = ChannelNorm(dim)
        self.safm = SAFM(dim)
        self.ccm = CCM(dim, ffn_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.safm(self.norm1(x)) + x
        x = self.ccm(self.norm2(x)) + x
        return x


class SimpleSAFM(nn.Module):
    """Simple feature modulation (SAFMN++): a gate, pooled by 8, on the first ``dim // ratio`` channels; no biases."""

    window = 8
    steps = (Conv(), PooledConv(window, bilinear=True))

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.split = (dim // ratio, dim - dim // ratio)
        modulated = self.split[0]
        self.proj = nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.dwconv = nn.Conv2d(modulated, modulated, 3, 1, 1, groups=modulated, bias=False)
        self.out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        return self.modulate(self.proj(x))

    def modulate(self, x: Tensor) -> Tensor:
        """Apply everything except the first convolution: (B, dim, h, w) to the same shape."""
        modulated, plain = x.split(self.split, dim=1)  # (B, dim / ratio, h, w), the rest
        gate = self.dwconv(max_pool(modulated, self.window))  # (B, dim / ratio, h // 8, w // 8)
        gate = spread(gate, x.shape[-2:], self.window)
        modulated = F.gelu(gate) * modulated
        x = self.out(F.gelu(torch.cat([plain, modulated], dim=1)))  # (B, dim, h, w)
        return x


class FeedForward(nn.Module):
    """Channel mixer without biases: a convolution to ``int(dim * ffn_scale)`` channels, GELU, a 1x1 back to ``dim``."""

    def __init__(self, dim: int, ffn_scale: float, kernel_size: int) -> None:
        super().__init__()
        hidden = int(dim * ffn_scale)
        self.conv1 = nn.Conv2d(dim, hidden, kernel_size, 1, kernel_size // 2, bias=False)
        self.conv2 = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.conv2(F.gelu(self.conv1(x)))
        return x
