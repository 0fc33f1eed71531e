"""Pieces that several networks of others share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.shapes import Shapes

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of DIV2K's colours, in [0, 1]."""


def shifted(x: Tensor, amounts: Sequence[float]) -> Tensor:
    """Add a number to each channel of (B, C, h, w). The numbers are no tensor, so no device or file holds them."""
    return torch.cat([part + amount for part, amount in zip(x.split(1, dim=1), amounts, strict=True)], dim=1)


def minus(amounts: Sequence[float]) -> tuple[float, ...]:
    """Return the negative numbers, for :func:`shifted`."""
    return tuple(-amount for amount in amounts)


def conv3(inward: int, outward: int, **settings: object) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size."""
    return nn.Conv2d(inward, outward, 3, padding=1, **settings)  # type: ignore[arg-type]


def conv1(inward: int, outward: int, **settings: object) -> nn.Conv2d:
    """Return a 1x1 convolution."""
    return nn.Conv2d(inward, outward, 1, **settings)  # type: ignore[arg-type]


def upsampler(dim: int, scale: int, image_channels: int = 3) -> nn.Sequential:
    """Return a 3x3 convolution and a pixel shuffle to the image."""
    return nn.Sequential(conv3(dim, image_channels * scale**2), nn.PixelShuffle(scale))


def enlarged_to(x: Tensor, like: Tensor) -> Tensor:
    """Enlarge bilinearly to the height and width of ``like``."""
    return functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def same_names(shapes: Shapes, *names: str) -> bool:
    """Return whether the state dict has all these names."""
    return all(name in shapes for name in names)


def indexed(shapes: Shapes, prefix: str) -> int:
    """Return the number of modules called ``prefix1``, ``prefix2``, ... up to the first gap."""
    number = 0
    while any(name.startswith(f"{prefix}{number + 1}.") for name in shapes):
        number += 1
    return number


class Exact(NamedTuple):
    """Weight and bias of a convolution, in float64 where the device has it."""

    weight: Tensor
    bias: Tensor | None


def exact(conv: nn.Module) -> Exact:
    """Return the weight and bias of a convolution for folding: several layers into one loses digits in float32."""
    weight, bias = cast(Tensor, conv.weight), cast("Tensor | None", conv.bias)
    if weight.device.type == "mps":
        return Exact(weight, bias)
    return Exact(weight.double(), None if bias is None else bias.double())


def square_side(count: int) -> int | None:
    """Return the side of a square of ``count`` cells; None if there is none."""
    side = math.isqrt(count)
    return side if side * side == count else None


def enlarged_halo(radius: int, scale: int) -> int:
    """Return the halo in LR pixels of a network that reads ``radius`` pixels of the bicubically enlarged image."""
    return -(-radius // scale) + 2
