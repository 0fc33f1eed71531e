"""PAN: pixel attention, Zhao et al., ECCVW 2020 (arXiv 2010.01073)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.blocks import enlarge
from safmn.archs.peers.declaration import Code, Paper, peer
from safmn.archs.peers.parts import conv1, conv3, same_names
from safmn.archs.receptive import Conv, Shuffle, Step, halo
from safmn.archs.shapes import Shapes, length
from safmn.value_types import Positive

_SLOPE = 0.2


class PixelAttention(nn.Module):
    """Scale each value by a function of its pixel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = conv1(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        return x * torch.sigmoid(self.conv(x))


class PAConv(nn.Module):
    """Two 3x3 convolutions with pixel attention between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.k2 = conv1(dim, dim)
        self.k3 = conv3(dim, dim, bias=False)
        self.k4 = conv3(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.k4(self.k3(x) * torch.sigmoid(self.k2(x)))
        return y


class SCPA(nn.Module):
    """Two halves of the channels, one of them with pixel attention, and a skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv1_a = conv1(dim, half, bias=False)
        self.conv1_b = conv1(dim, half, bias=False)
        self.k1 = nn.Sequential(conv3(half, half, bias=False))
        self.PAConv = PAConv(half)
        self.conv3 = conv1(half * 2, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        plain = self.k1(functional.leaky_relu(self.conv1_a(x), _SLOPE))
        attentive = self.PAConv(functional.leaky_relu(self.conv1_b(x), _SLOPE))
        joined = functional.leaky_relu(torch.cat([plain, attentive], dim=1), _SLOPE)
        y: Tensor = self.conv3(joined)
        return y + x


@peer(
    small={"nf": 8, "unf": 6, "nb": 2, "scale": 2},
    sizes={"PAN": {}},
    paper=Paper(
        "Zhao, Kong, He, Qiao, Dong",
        "Efficient Image Super-Resolution Using Pixel Attention",
        "ECCV Workshops 2020",
        "2010.01073",
    ),
    code=Code("zhaohengyuan1/PAN", "none"),
    scale_argument="scale",
    note="The weights have the same shapes at x2 and x3.",
)
class PAN(nn.Module):
    """Pixel attention network.

    Args:
        in_nc: Channels of the input.
        out_nc: Channels of the output, as many as of the input.
        nf: Feature channels.
        unf: Feature channels behind the enlargement.
        nb: Number of blocks.
        scale: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the input, in LR pixels to each side.
    """

    def __init__(
        self,
        in_nc: Positive = 3,
        out_nc: Positive = 3,
        nf: Positive = 40,
        unf: Positive = 24,
        nb: Positive = 16,
        scale: Literal[2, 3, 4] = 4,
    ) -> None:
        super().__init__()
        self.scale, self.window = int(scale), 1
        self.steps = (2, 2) if scale == 4 else (self.scale,)
        enlarging: list[Step] = [step for factor in self.steps for step in (Shuffle(factor), Conv(), Conv())]
        self.halo = halo([Conv(), *[Conv()] * (2 * nb), Conv(), *enlarging, Conv()], self.window, self.scale)
        self.conv_first = conv3(in_nc, nf)
        self.SCPA_trunk = nn.Sequential(*[SCPA(nf) for _ in range(nb)])
        self.trunk_conv = conv3(nf, nf)
        for number, _ in enumerate(self.steps, start=1):
            self.add_module(f"upconv{number}", conv3(nf if number == 1 else unf, unf))
            self.add_module(f"att{number}", PixelAttention(unf))
            self.add_module(f"HRconv{number}", conv3(unf, unf))
        self.conv_last = conv3(unf, out_nc)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped."""
        first = self.conv_first(x)
        features = first + self.trunk_conv(self.SCPA_trunk(first))  # (B, nf, h, w)
        for number, factor in enumerate(self.steps, start=1):
            features = functional.interpolate(features, scale_factor=float(factor), mode="nearest")
            features = getattr(self, f"att{number}")(getattr(self, f"upconv{number}")(features))
            features = functional.leaky_relu(features, _SLOPE)
            features = functional.leaky_relu(getattr(self, f"HRconv{number}")(features), _SLOPE)
        image: Tensor = self.conv_last(features) + enlarge(x, self.scale)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        if not same_names(
            shapes, "conv_first.weight", "SCPA_trunk.0.conv1_a.weight", "upconv1.weight", "conv_last.weight"
        ):
            return None
        nf, in_nc = shapes["conv_first.weight"][:2]
        out_nc, unf = shapes["conv_last.weight"][:2]
        scale = 4 if "upconv2.weight" in shapes else (2, 3)
        return {
            "in_nc": in_nc,
            "out_nc": out_nc,
            "nf": nf,
            "unf": unf,
            "nb": length(shapes, "SCPA_trunk"),
            "scale": scale,
        }
