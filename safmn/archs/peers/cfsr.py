"""CFSR: transforming convolutions, Wu, Jiang, Jiang and Liu, TIP 2024 (arXiv 2401.05633)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.blocks import ChannelNorm
from safmn.archs.peers.declaration import Code, Paper, peer
from safmn.archs.peers.parts import RGB_MEAN, conv1, conv3, minus, same_names, shifted
from safmn.archs.peers.parts import upsampler as image_upsampler
from safmn.archs.receptive import Conv, halo
from safmn.archs.shapes import Shapes, length, shuffle_scale
from safmn.value_types import Positive, PositiveFloat

_FIRST_LAYER_SCALE = 1e-6


class LargeKernel(nn.Module):
    """A depthwise convolution with a large kernel."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.lkb_reparam = nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.lkb_reparam(x)
        return y


class Modulation(nn.Module):
    """The convolution that replaces self-attention: a large kernel's output times a linear one."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.a = nn.Sequential(conv1(dim, dim), nn.GELU(), LargeKernel(dim, size))
        self.v = conv1(dim, dim)
        self.proj = conv1(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.norm(x)
        y: Tensor = self.proj(self.a(x) * self.v(x))
        return y


class FeedForward(nn.Module):
    """Channel mixer with a depthwise convolution inside."""

    def __init__(self, dim: int, growth: float) -> None:
        super().__init__()
        hidden = int(dim * growth)
        self.norm = ChannelNorm(dim)
        self.fc1 = conv1(dim, hidden)
        self.pos = conv3(hidden, hidden, groups=hidden)
        self.fc2 = conv1(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        hidden = functional.gelu(self.fc1(self.norm(x)))
        y: Tensor = self.fc2(hidden + functional.gelu(self.pos(hidden)))
        return y


class ConvFormerBlock(nn.Module):
    """Modulation and feed-forward, each with a skip and a learnt scale for each channel."""

    def __init__(self, dim: int, size: int, growth: float) -> None:
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), _FIRST_LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), _FIRST_LAYER_SCALE))
        self.attn = Modulation(dim, size)
        self.mlp = FeedForward(dim, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = x + self.layer_scale_1[:, None, None] * self.attn(x)
        x = x + self.layer_scale_2[:, None, None] * self.mlp(x)
        return x


class Layer(nn.Module):
    """Several blocks, then a 1x1 convolution with a skip."""

    def __init__(self, dim: int, depth: int, size: int, growth: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ConvFormerBlock(dim, size, growth) for _ in range(depth)))
        self.conv = conv1(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.blocks(x)
        y: Tensor = self.conv(x) + x
        return y


@peer(
    small={"embed_dim": 16, "depths": [1, 2], "upscale": 2},
    sizes={"CFSR": {}},
    paper=Paper(
        "Wu, Jiang, Jiang, Liu",
        "Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach",
        "TIP 2024",
        "2401.05633",
    ),
    code=Code("Aitical/CFSR", "none"),
    note="The folded form, as published; the edge filters of its training are not implemented.",
)
class CFSR(nn.Module):
    """ConvFormer-based super-resolution network, in the folded form.

    Args:
        upscale: Scale of super-resolution.
        in_chans: Channels of the image.
        dw_size: Side of the large kernels, an odd number.
        img_range: Factor on the image after the mean is subtracted.
        depths: Number of blocks of each layer.
        embed_dim: Feature channels.
        mlp_ratio: Growth of the channels in the feed-forward part.
        upsampler: The last layer; only ``pixelshuffledirect`` was published.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the input, in LR pixels to each side.
    """

    def __init__(
        self,
        upscale: Positive = 4,
        in_chans: Literal[3] = 3,
        dw_size: Positive = 9,
        img_range: PositiveFloat = 1.0,
        depths: tuple[Positive, ...] = (6, 6),
        embed_dim: Positive = 48,
        mlp_ratio: PositiveFloat = 2.0,
        upsampler: Literal["pixelshuffledirect"] = "pixelshuffledirect",
    ) -> None:
        super().__init__()
        self.scale, self.window = upscale, 1
        self.halo = halo([Conv()] * 3 + [Conv(dw_size // 2), Conv()] * sum(depths), self.window)
        self.img_range = img_range
        self.conv_first = conv3(in_chans, embed_dim)
        self.layers = nn.ModuleList(Layer(embed_dim, depth, dw_size, mlp_ratio) for depth in depths)
        self.norm = ChannelNorm(embed_dim)
        self.conv_after_body = conv3(embed_dim, embed_dim)
        self.upsample = image_upsampler(embed_dim, upscale, in_chans)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped."""
        features = self.conv_first(shifted(x, minus(RGB_MEAN)) * self.img_range)
        y = features
        for layer in self.layers:
            y = layer(y)
        image = self.upsample(self.conv_after_body(self.norm(y)) + features)
        return shifted(image / self.img_range, RGB_MEAN)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        block = "layers.0.blocks.0"
        kernel, hidden, last = f"{block}.attn.a.2.lkb_reparam.weight", f"{block}.mlp.fc1.weight", "upsample.0.weight"
        if not same_names(shapes, "conv_first.weight", kernel, hidden, last):
            return None
        dim, channels = shapes["conv_first.weight"][:2]
        return {
            "upscale": shuffle_scale(shapes[last][0], channels),
            "in_chans": channels,
            "dw_size": shapes[kernel][-1],
            "depths": tuple(length(shapes, f"layers.{n}.blocks") for n in range(length(shapes, "layers"))),
            "embed_dim": dim,
            "mlp_ratio": shapes[hidden][0] / dim,
        }
