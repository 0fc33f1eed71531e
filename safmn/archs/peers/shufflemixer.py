"""ShuffleMixer: large depthwise convolutions and channel shuffles, Sun et al., NeurIPS 2022 (arXiv 2205.15175)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from safmn.archs.blocks import enlarge
from safmn.archs.peers.declaration import Code, Paper, peer
from safmn.archs.peers.parts import conv1, conv3, same_names
from safmn.archs.receptive import Conv, halo
from safmn.archs.shapes import Shapes, length
from safmn.errors import OptionError
from safmn.value_types import Positive

_GROUPS = 8  # of the channel shuffle
_MORE = 16  # channels that a block's 3x3 convolution adds


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a weight but no bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)  # (B, 1, h, w)
        return centred * torch.rsqrt(variance + 1e-5) * self.weight[:, None, None]


class SplitMLP(nn.Module):
    """Mix one half of the channels, then shuffle all of them."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        half = dim // 2
        self.fc = nn.Sequential(conv1(half, half * mlp_ratio), nn.SiLU(), conv1(half * mlp_ratio, half))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        mixed, kept = x.chunk(2, dim=1)
        joined = torch.cat([self.fc(mixed), kept], dim=1)
        return joined.unflatten(1, (_GROUPS, joined.shape[1] // _GROUPS)).transpose(1, 2).flatten(1, 2)


class MixerLayer(nn.Module):
    """A channel mixer, a large depthwise convolution, and a channel mixer."""

    def __init__(self, dim: int, kernel_size: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"body": ChannelNorm(dim)})
        self.norm2 = nn.ModuleDict({"body": ChannelNorm(dim)})
        self.spatial = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.mlp1 = SplitMLP(dim, mlp_ratio)
        self.mlp2 = SplitMLP(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.mlp1(self.norm1["body"](x)) + x
        x = self.spatial(x)
        y: Tensor = self.mlp2(self.norm2["body"](x)) + x
        return y


class MixerBlock(nn.Module):
    """Two mixer layers and a wider 3x3 convolution, each with a skip."""

    def __init__(self, dim: int, kernel_size: int, mlp_ratio: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*[MixerLayer(dim, kernel_size, mlp_ratio) for _ in range(2)])
        self.conv = nn.Sequential(conv3(dim, dim + _MORE), nn.SiLU(), conv1(dim + _MORE, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.net(x) + x
        x = self.conv(x) + x
        return x


@peer(
    small={"n_feats": 16, "kernel_size": 5, "n_blocks": 2, "upscaling_factor": 2},
    sizes={"ShuffleMixer": {}, "ShuffleMixer-tiny": {"n_feats": 32, "kernel_size": 3}},
    paper=Paper(
        "Sun, Pan, Tang",
        "ShuffleMixer: An Efficient ConvNet for Image Super-Resolution",
        "NeurIPS 2022",
        "2205.15175",
    ),
    code=Code("sunny2109/ShuffleMixer", "MIT"),
    scale_argument="upscaling_factor",
)
class ShuffleMixer(nn.Module):
    """Mixes pixels with large depthwise convolutions, and channels with small perceptrons and shuffles.

    Args:
        n_feats: Feature channels, a multiple of 16.
        kernel_size: Size of the depthwise convolutions, odd.
        n_blocks: Number of blocks.
        mlp_ratio: Width of the perceptrons, relative to their input.
        upscaling_factor: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the input, in LR pixels to each side.

    Raises:
        OptionError: ``n_feats`` is not a multiple of 16, or ``kernel_size`` is even.
    """

    def __init__(
        self,
        n_feats: Positive = 64,
        kernel_size: Positive = 7,
        n_blocks: Positive = 5,
        mlp_ratio: Positive = 2,
        upscaling_factor: Literal[2, 3, 4] = 4,
    ) -> None:
        super().__init__()
        if n_feats % (2 * _GROUPS) or kernel_size % 2 == 0:
            raise OptionError(
                f"ShuffleMixer: n_feats ({n_feats}) must be a multiple of 16 and kernel_size ({kernel_size}) odd"
            )
        self.scale, self.window = int(upscaling_factor), 1
        block = [Conv(kernel_size // 2), Conv(kernel_size // 2), Conv()]
        self.halo = halo([Conv(), *block * n_blocks, Conv()], self.window)  # the last convolution is behind the shuffle
        self.to_feat = conv3(3, n_feats, bias=False)
        self.blocks = nn.Sequential(*[MixerBlock(n_feats, kernel_size, mlp_ratio) for _ in range(n_blocks)])
        layers: list[nn.Module] = []
        for factor in (2, 2) if self.scale == 4 else (self.scale,):
            layers += [conv1(n_feats, n_feats * factor**2), nn.PixelShuffle(factor), nn.SiLU()]
        self.upsapling = nn.Sequential(*layers)
        self.tail = conv3(n_feats, 3)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped."""
        features = self.upsapling(self.blocks(self.to_feat(x)))  # (B, n_feats, h * scale, w * scale)
        image: Tensor = self.tail(features) + enlarge(x, self.scale)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        mixer = "blocks.0.net.0.mlp1.fc.0.weight"
        if not same_names(shapes, "to_feat.weight", mixer, "blocks.0.net.0.spatial.weight", "upsapling.0.weight"):
            return None
        n_feats = shapes["to_feat.weight"][0]
        hidden, half = shapes[mixer][:2]
        doubled = "upsapling.3.weight" in shapes
        return {
            "n_feats": n_feats,
            "kernel_size": shapes["blocks.0.net.0.spatial.weight"][-1],
            "n_blocks": length(shapes, "blocks"),
            "mlp_ratio": hidden // half,
            "upscaling_factor": 4 if doubled else math.isqrt(shapes["upsapling.0.weight"][0] // n_feats),
        }
