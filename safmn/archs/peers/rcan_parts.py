"""Pieces that networks built on the code of EDSR and RCAN share: CARN, SMSR, SAN, HAN."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.parts import RGB_MEAN, conv1, conv3
from safmn.archs.shapes import Shapes
from safmn.errors import OptionError


class MeanShift(nn.Conv2d):
    """Adds (or subtracts) the mean colour, as a 1x1 convolution whose weights a file holds.

    Args:
        sign: 1 or -1.
        rgb_range: The value of white.
        frozen: Whether the weights are left out of training.
    """

    def __init__(self, sign: int, rgb_range: float = 1.0, *, frozen: bool = True) -> None:
        super().__init__(3, 3, 1)
        assert self.bias is not None
        with torch.no_grad():
            self.weight.copy_(torch.eye(3)[:, :, None, None])
            self.bias.copy_(torch.tensor(RGB_MEAN) * rgb_range * sign)
        self.requires_grad_(not frozen)


class ChannelAttention(nn.Module):
    """Scale each channel by a function of the channels' means over the image."""

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            conv1(dim, dim // reduction), nn.ReLU(), conv1(dim // reduction, dim), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        gate: Tensor = self.conv_du(functional.adaptive_avg_pool2d(x, 1))  # (B, dim, 1, 1)
        return x * gate


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in at least single precision: sums over an image exceed the range of float16."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which products of :func:`wide` tensors stay in their precision."""
    if x.device.type in ("cpu", "cuda", "mps", "xpu"):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()  # the meta device has no autocast


def steps_of(scale: int) -> tuple[int, ...]:
    """Return the factors of the pixel shuffles that enlarge by ``scale``: (3,), or one 2 for each doubling.

    Raises:
        OptionError: the scale is neither 3 nor a power of two.
    """
    if scale == 3:
        return (3,)
    if scale < 1 or scale & (scale - 1):
        raise OptionError(f"the scale is {scale}, but this network has 1, 2, 3, 4, 8, ...")
    return (2,) * (scale.bit_length() - 1)


def enlarger(dim: int, scale: int) -> nn.Sequential:
    """Return the layers that enlarge ``dim`` channels: a 3x3 convolution and a pixel shuffle, for each of the steps."""
    layers: list[nn.Module] = []
    for step in steps_of(scale):
        layers += [conv3(dim, dim * step**2), nn.PixelShuffle(step)]
    return nn.Sequential(*layers)


def scale_of(shapes: Shapes, prefix: str, dim: int) -> int:
    """Return the scale of an :func:`enlarger` of ``dim`` channels whose layers are ``prefix.0``, ``prefix.2``, ..."""
    first = shapes.get(f"{prefix}.0.weight")
    if first is None:
        return 1
    if first[0] == 9 * dim:
        return 3
    return 2 ** sum(name.startswith(f"{prefix}.") and name.endswith(".weight") for name in shapes)


def check_fixed(network: str, n_colors: int, res_scale: float) -> None:
    """Check two arguments of the authors' option parsers that have one meaningful value.

    Raises:
        OptionError: one of them has another value.
    """
    if n_colors != 3 or res_scale != 1:
        raise OptionError(f"{network}: n_colors ({n_colors}) must be 3 and res_scale ({res_scale}) 1")
