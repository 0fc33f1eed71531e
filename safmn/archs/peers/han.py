"""HAN: attention over layers, and over channels and places at once, Niu et al., ECCV 2020 (arXiv 2008.08767)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.parts import conv3, same_names
from safmn.archs.peers.rcan_parts import (
    ChannelAttention,
    MeanShift,
    check_fixed,
    enlarger,
    scale_of,
    wide,
    without_autocast,
)
from safmn.archs.shapes import Shapes, length
from safmn.value_types import Positive, PositiveFloat


class AttentiveBlock(nn.Module):
    """Two convolutions, channel attention and a skip: RCAN's block."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3(dim, dim), nn.ReLU(), conv3(dim, dim), ChannelAttention(dim, reduction))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.body(x) + x
        return y


class Group(nn.Module):
    """Blocks, a convolution, and a skip around them: RCAN's residual group."""

    def __init__(self, dim: int, blocks: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*[AttentiveBlock(dim, reduction) for _ in range(blocks)], conv3(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.body(x) + x
        return y


class LayerAttention(nn.Module):
    """Adds to each layer a mixture of all layers, weighted by how little they resemble it."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map the layers (B, L, C, h, w) to (B, L * C, h, w)."""
        flat = x.flatten(2)  # (B, L, C * h * w)
        with without_autocast(x):
            full = wide(flat)
            products = full @ full.transpose(1, 2)  # (B, L, L)
            attention = torch.softmax(products.amax(dim=2, keepdim=True) - products, dim=2).to(x.dtype)
        mixed = (attention @ flat).reshape(x.shape)
        return (self.gamma * mixed + x).flatten(1, 2)


class ChannelSpatialAttention(nn.Module):
    """Scales each value by a function of its neighbours in channel, height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.conv = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        gate = torch.sigmoid(self.conv(x[:, None]))[:, 0]  # (B, C, h, w)
        return x + x * (self.gamma * gate)


@peer(
    small={"scale": 2, "n_resgroups": 2, "n_resblocks": 2, "n_feats": 16},
    sizes={"HAN": {}},
    paper=Paper(
        "Niu, Wen, Ren, Zhang, Yang, Wang, Zhang, Cao, Shen",
        "Single Image Super-Resolution via a Holistic Attention Network",
        "ECCV 2020",
        "2008.08767",
    ),
    code=Code("wwlCape/HAN", "Apache-2.0"),
    form=Form(largest=255.0),
    scale_argument="scale",
    note="Tables give the cost of a network with 128 channels; the published weights have 64.",
)
class HAN(nn.Module):
    """Holistic attention network, for images in [0, 255].

    Published tables give 64 M parameters and 3776 G multiply-adds at x4. That is a network with ``n_feats`` 128, the
    default of the authors' command, without the products between layers. The published one has 64: 16.07 M, 946 G.

    Args:
        scale: Scale of super-resolution.
        n_resgroups: Number of groups.
        n_resblocks: Number of blocks in each group.
        n_feats: Feature channels.
        reduction: How many times fewer channels the attention has.
        rgb_range: The value of white.
        n_colors: Channels of the image: 3.
        res_scale: Must be 1: the network has no scaling of its residuals.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: None: its attention sees the whole image.
        form: see :class:`safmn.archs.peers.Form`.

    Raises:
        OptionError: the scale is neither 3 nor a power of two, ``n_colors`` is not 3, or ``res_scale`` not 1.
    """

    def __init__(
        self,
        scale: Positive = 4,
        n_resgroups: Positive = 10,
        n_resblocks: Positive = 20,
        n_feats: Positive = 64,
        reduction: Positive = 16,
        rgb_range: PositiveFloat = 255,
        n_colors: Positive = 3,
        res_scale: PositiveFloat = 1,
    ) -> None:
        super().__init__()
        check_fixed("HAN", n_colors, res_scale)
        self.form = Form(largest=float(rgb_range))
        self.scale, self.window, self.halo = scale, 1, None
        self.sub_mean = MeanShift(-1, rgb_range)
        self.add_mean = MeanShift(1, rgb_range)
        self.head = nn.Sequential(conv3(3, n_feats))
        groups = [Group(n_feats, n_resblocks, reduction) for _ in range(n_resgroups)]
        self.body = nn.Sequential(*groups, conv3(n_feats, n_feats))
        self.csa = ChannelSpatialAttention()
        self.la = LayerAttention()
        self.last_conv = conv3(n_feats * (n_resgroups + 1), n_feats)
        self.last = conv3(n_feats * 2, n_feats)
        self.tail = nn.Sequential(enlarger(n_feats, scale), conv3(n_feats, 3))

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 255], to (B, 3, h * scale, w * scale), unclamped."""
        first = self.head(self.sub_mean(x))  # (B, n_feats, h, w)
        layers = [first]
        for part in self.body:
            layers.append(part(layers[-1]))
        mixed = self.last_conv(self.la(torch.stack(layers[:0:-1], dim=1)))  # newest first
        joined = torch.cat([self.csa(layers[-1]), mixed], dim=1)  # (B, 2 * n_feats, h, w)
        image: Tensor = self.add_mean(self.tail(self.last(joined) + first))
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        squeeze = "body.0.body.0.body.3.conv_du.0.weight"
        if not same_names(shapes, "head.0.weight", squeeze, "csa.conv.weight", "la.gamma", "last_conv.weight"):
            return None
        n_feats, n_colors = shapes["head.0.weight"][:2]
        return {
            "scale": scale_of(shapes, "tail.0", n_feats),
            "n_resgroups": length(shapes, "body") - 1,
            "n_resblocks": length(shapes, "body.0.body") - 1,
            "n_feats": n_feats,
            "reduction": n_feats // shapes[squeeze][0],
            "n_colors": n_colors,
        }
