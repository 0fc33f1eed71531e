"""SMFANet: self-modulation feature aggregation, Zheng, Sun, Dong and Pan, ECCV 2024."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.blocks import max_pool
from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.parts import conv1, conv3, same_names, upsampler
from safmn.archs.shapes import Shapes, ffn_scale, length, shuffle_scale
from safmn.value_types import Positive, PositiveFloat

_POOL = 8


class LocalDetails(nn.Module):
    """Depthwise to twice the channels, mix, and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_0 = nn.Sequential(conv3(dim, 2 * dim, groups=dim), conv1(2 * dim, 2 * dim))
        self.conv_1 = conv1(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.conv_1(functional.gelu(self.conv_0(x)))
        return y


class SelfModulation(nn.Module):
    """Half of the features modulated by a pooled map and the image's variance, half by local convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.belt = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.linear_0 = conv1(dim, 2 * dim)
        self.linear_1 = conv1(dim, dim)
        self.linear_2 = conv1(dim, dim)
        self.lde = LocalDetails(dim)
        self.dw_conv = conv3(dim, dim, groups=dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, dim, h, w), h and w at least 8, to the same shape."""
        y, x = self.linear_0(features).chunk(2, dim=1)  # (B, dim, h, w) each
        pooled = self.dw_conv(max_pool(x, _POOL))  # (B, dim, h // 8, w // 8)
        variance = torch.var(x, dim=(2, 3), keepdim=True)  # (B, dim, 1, 1), unbiased
        gate = functional.gelu(self.linear_1(pooled * self.alpha + variance * self.belt))
        modulated = x * functional.interpolate(gate, size=x.shape[2:], mode="nearest")
        z: Tensor = self.linear_2(modulated + self.lde(y))
        return z


class PartialFeedForward(nn.Module):
    """Channel mixer whose first quarter also sees neighbouring pixels."""

    def __init__(self, dim: int, growth: float) -> None:
        super().__init__()
        hidden = int(dim * growth)
        self.parts = hidden // 4, hidden - hidden // 4
        self.conv_0 = conv1(dim, hidden)
        self.conv_1 = conv3(hidden // 4, hidden // 4)
        self.conv_2 = conv1(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        local, rest = functional.gelu(self.conv_0(x)).split(self.parts, dim=1)
        y: Tensor = self.conv_2(torch.cat([functional.gelu(self.conv_1(local)), rest], dim=1))
        return y


class ModulationBlock(nn.Module):
    """Self-modulation and feed-forward, each after an L2 normalisation of every pixel and with a skip."""

    def __init__(self, dim: int, growth: float) -> None:
        super().__init__()
        self.smfa = SelfModulation(dim)
        self.pcfn = PartialFeedForward(dim, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.smfa(functional.normalize(x, dim=1)) + x
        x = self.pcfn(functional.normalize(x, dim=1)) + x
        return x


@peer(
    small={"dim": 16, "n_blocks": 2, "upscaling_factor": 2},
    sizes={"SMFANet": {}, "SMFANet+": {"dim": 48, "n_blocks": 12}},
    paper=Paper(
        "Zheng, Sun, Dong, Pan",
        "SMFANet: A Lightweight Self-Modulation Feature Aggregation Network for Efficient Image Super-Resolution",
        "ECCV 2024",
    ),
    code=Code("Zheng-MJ/SMFANet", "Apache-2.0"),
    form=Form(smallest=_POOL),
    scale_argument="upscaling_factor",
)
class SMFANet(nn.Module):
    """Self-modulation feature aggregation network.

    Args:
        dim: Feature channels.
        n_blocks: Number of blocks.
        ffn_scale: Growth of the channels in the feed-forward part.
        upscaling_factor: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: tiles and exported files need sides that are multiples of 8, as the pooling does.
        halo: None: the variance is the whole image's.
    """

    def __init__(
        self,
        dim: Positive = 36,
        n_blocks: Positive = 8,
        ffn_scale: PositiveFloat = 2.0,
        upscaling_factor: Positive = 4,
    ) -> None:
        super().__init__()
        self.scale, self.window, self.halo = upscaling_factor, _POOL, None
        self.to_feat = conv3(3, dim)
        self.feats = nn.Sequential(*(ModulationBlock(dim, ffn_scale) for _ in range(n_blocks)))
        self.to_img = upsampler(dim, upscaling_factor)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped; sides of at least 8."""
        features = self.to_feat(x)
        image: Tensor = self.to_img(self.feats(features) + features)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        if not same_names(shapes, "feats.0.smfa.alpha", "feats.0.pcfn.conv_0.weight", "to_img.0.weight"):
            return None
        dim, hidden = shapes["feats.0.smfa.alpha"][1], shapes["feats.0.pcfn.conv_0.weight"][0]
        return {
            "dim": dim,
            "n_blocks": length(shapes, "feats"),
            "ffn_scale": ffn_scale(dim, hidden),
            "upscaling_factor": shuffle_scale(shapes["to_img.0.weight"][0]),
        }
