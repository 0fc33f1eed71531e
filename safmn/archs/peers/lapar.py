"""LAPAR: mixes fixed filters at every pixel, Li et al., NeurIPS 2020 (arXiv 2105.10422)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.parts import RGB_MEAN, same_names
from safmn.archs.receptive import Conv, Shuffle, halo
from safmn.archs.shapes import Shapes, length
from safmn.errors import OptionError
from safmn.value_types import Positive

_UNITS = 4  # residual units of a block

Filter = list[list[float]]
"""The five rows of a filter."""


class NormedConv(nn.Conv2d):
    """A convolution whose weights are a direction ``weight_v`` and a length ``weight_g`` per output channel."""

    def __init__(self, inward: int, outward: int, size: int) -> None:
        super().__init__(inward, outward, size, padding=size // 2)
        weight = self.weight.detach()
        del self.weight
        self.weight_g = nn.Parameter(_lengths(weight))
        self.weight_v = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inward, h, w) to (B, outward, h, w)."""
        weight = self.weight_v * (self.weight_g / _lengths(self.weight_v))
        return self._conv_forward(x, weight, self.bias)


def _lengths(weight: Tensor) -> Tensor:
    return weight.square().sum((1, 2, 3), keepdim=True).sqrt()


class Factor(nn.Module):
    """A learnt number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x`` by the number."""
        return x * self.scale


class Unit(nn.Module):
    """Two convolutions; their result and the input are each scaled and added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_scale = Factor()
        self.x_scale = Factor()
        self.body = nn.Sequential(NormedConv(dim, dim, 3), nn.ReLU(), NormedConv(dim, dim, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.res_scale(self.body(x)) + self.x_scale(x)
        return y


class FusionBlock(nn.Module):
    """Four units in a row; a convolution joins their results."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        for number in range(_UNITS):
            self.add_module(f"b{number}", Unit(dim))
        self.reduction = NormedConv(dim * _UNITS, dim, 3)
        self.res_scale = Factor()
        self.x_scale = Factor()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        outputs = [x]
        for number in range(_UNITS):
            outputs.append(getattr(self, f"b{number}")(outputs[-1]))
        y: Tensor = self.res_scale(self.reduction(torch.cat(outputs[1:], dim=1))) + self.x_scale(x)
        return y


class Tail(nn.Module):
    """Mixing weights from enlarged features, which a 3x3 and a 5x5 convolution read."""

    def __init__(self, dim: int, n_weight: int) -> None:
        super().__init__()
        self.tail_k3 = NormedConv(dim, dim, 3)
        self.tail_k5 = NormedConv(dim, dim, 5)
        self.scale_k3 = Factor()
        self.scale_k5 = Factor()
        self.fuse = NormedConv(dim, dim, 3)
        self.w_conv = NormedConv(dim, n_weight, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to (B, n_weight, h, w)."""
        both = self.scale_k3(self.tail_k3(x)) + self.scale_k5(self.tail_k5(x))
        weights: Tensor = self.w_conv(torch.relu(self.fuse(both)))
        return weights


class Weighting(nn.Module):
    """The network that gives each filter's weight at each HR pixel."""

    rgb_mean: Tensor

    def __init__(self, scale: int, in_channel: int, dim: int, blocks: int, n_weight: int) -> None:
        super().__init__()
        self.register_buffer("rgb_mean", torch.tensor(RGB_MEAN).reshape(1, 3, 1, 1))
        self.head = nn.Sequential(NormedConv(in_channel, dim, 3), nn.ReLU())
        self.body = nn.Sequential(*[FusionBlock(dim) for _ in range(blocks)])
        self.up = nn.Sequential(NormedConv(dim, dim * scale**2, 3), nn.ReLU(), nn.PixelShuffle(scale))
        self.tail = Tail(dim, n_weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map an RGB image (B, 3, h, w) to (B, n_weight, h * scale, w * scale)."""
        weights: Tensor = self.tail(self.up(self.body(self.head(x - self.rgb_mean))))
        return weights


class FilterBank(nn.Module):
    """Applies each of the 72 filters to an image."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(filters())[:, None])  # (72, 1, 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 1, h + 4, w + 4) to (B, 72, h, w)."""
        return functional.conv2d(x, self.weight)


@peer(
    small={"scale": 2, "n_channel": 8, "res_block": 1},
    sizes={"LAPAR-A": {}, "LAPAR-B": {"n_channel": 24, "res_block": 3}, "LAPAR-C": {"n_channel": 16, "res_block": 2}},
    paper=Paper(
        "Li, Zhou, Qi, Jiang, Lu, Jia",
        "LAPAR: Linearly-Assembled Pixel-Adaptive Regression Network for Single Image Super-Resolution and Beyond",
        "NeurIPS 2020",
        "2105.10422",
    ),
    code=Code("dvlab-research/Simple-SR", "MIT"),
    form=Form(smallest=2),
    scale_argument="scale",
    note="Tables leave the 4.98 G multiply-adds of the filtering out.",
)
class LAPAR(nn.Module):
    """Filters the bicubically enlarged image, at every pixel with another mixture of 72 fixed 5x5 filters.

    Published tables leave out the filtering, 4.98 G multiply-adds for an output of 1280x720.

    Args:
        scale: Scale of super-resolution.
        n_channel: Feature channels.
        res_block: Number of blocks.
        n_weight: Number of filters: 72.
        kernel_size: Size of the filters: 5.
        in_channel: Channels of the input: 3.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size from 2x2.
        halo: how far an output pixel depends on the input, in LR pixels to each side.

    Raises:
        OptionError: ``n_weight``, ``kernel_size`` or ``in_channel`` is another number than the filters have.
    """

    def __init__(
        self,
        scale: Positive = 4,
        n_channel: Positive = 32,
        res_block: Positive = 4,
        n_weight: Positive = 72,
        kernel_size: Positive = 5,
        in_channel: Positive = 3,
    ) -> None:
        super().__init__()
        if (n_weight, kernel_size, in_channel) != (72, 5, 3):
            raise OptionError("LAPAR has n_weight 72, kernel_size 5 and in_channel 3: its filters are given")
        self.scale, self.window = scale, 1
        block = [Conv()] * (2 * _UNITS + 1)
        self.halo = halo(
            [Conv(), *block * res_block, Conv(), Shuffle(scale), Conv(2), Conv(), Conv()], self.window, scale
        )
        self.w_conv = Weighting(scale, in_channel, n_channel, res_block, n_weight)
        self.decom_conv = FilterBank()

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped."""
        weights = self.w_conv(x)[:, None]  # (B, 1, n_weight, H, W)
        enlarged = functional.interpolate(x, scale_factor=float(self.scale), mode="bicubic", align_corners=False)
        padded = functional.pad(enlarged, (2, 2, 2, 2), mode="reflect")
        planes = padded.flatten(0, 1)[:, None]  # (B * 3, 1, H + 4, W + 4)
        filtered = self.decom_conv(planes).unflatten(0, (-1, 3))  # (B, 3, n_weight, H, W)
        return (filtered * weights).sum(dim=2)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        up = "w_conv.up.0.weight_v"
        if not same_names(shapes, "w_conv.rgb_mean", "w_conv.head.0.weight_v", up, "decom_conv.weight"):
            return None
        n_channel, in_channel = shapes["w_conv.head.0.weight_v"][:2]
        return {
            "scale": math.isqrt(shapes[up][0] // n_channel),
            "n_channel": n_channel,
            "res_block": length(shapes, "w_conv.body"),
            "n_weight": shapes["decom_conv.weight"][0],
            "kernel_size": shapes["decom_conv.weight"][-1],
            "in_channel": in_channel,
        }


def filters() -> list[Filter]:
    """Return LAPAR's 72 filters of 5x5: 51 Gaussians and 21 differences of Gaussians, each with the sum 1.

    The paper says of which kinds the filters are. The deviations, angles and sums of this function were found by
    fitting the published filters, which it gives to 1e-15.
    """
    wide = [*_turned(2.0, 1, 180), *_turned(2.0, 0.8, 30), *_turned(2.0, 0.6, 30), *_turned(2.0, 0.4, 30)]
    middle = [*_turned(1.2, 1, 180), *_turned(1.2, 0.8, 30), *_turned(1.2, 0.6, 30), *_turned(1.2, 0.4, 30)]
    thin, narrow = _turned(2.0, 0.2, 15), _turned(0.4, 1, 180)
    pairs = [
        (wide[0], middle[0]),
        (wide[0], narrow[0]),
        (middle[0], narrow[0]),
        *zip(wide[1:], middle[1:], strict=True),
    ]
    return [*wide, *thin, *middle, *narrow, *(_difference(first, second) for first, second in pairs)]


def _turned(deviation: float, ratio: float, step: int) -> list[Filter]:
    """Return Gaussians, turned by ``step`` degrees from one to the next."""
    return [_gaussian(deviation, deviation * ratio, -angle) for angle in range(0, 180, step)]


def _gaussian(longer: float, shorter: float, degrees: int) -> Filter:
    """Return a Gaussian with these standard deviations in pixels."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def value(row: int, column: int) -> float:
        along, across = column * cosine + row * sine, row * cosine - column * sine
        return math.exp(-0.5 * ((along / longer) ** 2 + (across / shorter) ** 2))

    return _with_sum([[value(row, column) for column in range(-2, 3)] for row in range(-2, 3)], 1)


def _difference(wide: Filter, narrow: Filter) -> Filter:
    """Return the difference, its positive part scaled to the sum 1.4 and its negative part to -0.4."""
    differences = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(wide, narrow, strict=True)]
    above = _with_sum([[max(value, 0) for value in row] for row in differences], 1.4)
    below = _with_sum([[min(value, 0) for value in row] for row in differences], -0.4)
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(above, below, strict=True)]


def _with_sum(values: Filter, total: float) -> Filter:
    factor = total / sum(map(sum, values))
    return [[value * factor for value in row] for row in values]
