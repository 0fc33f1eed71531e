"""BSRN: blueprint separable residual network, Li et al., CVPR workshops 2022 (arXiv 2205.05996)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.esa import ESA, SMALLEST
from safmn.archs.peers.imdn import ContrastAttention
from safmn.archs.peers.parts import conv1, indexed, same_names
from safmn.archs.peers.parts import upsampler as image_upsampler
from safmn.archs.peers.rfdn import DistillationBlock
from safmn.archs.shapes import Shapes, shuffle_scale
from safmn.value_types import Positive

_COPIES = 4  # of the image, which are the input
_ATTENTION = 16


class BSConv(nn.Module):
    """Blueprint separable convolution: a 1x1 convolution without bias, then a 3x3 convolution of each channel."""

    def __init__(self, inward: int, outward: int, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.pw = conv1(inward, outward, bias=False)
        self.dw = nn.Conv2d(outward, outward, 3, stride, padding, groups=outward)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inward, h, w) to (B, outward, h, w), or smaller by stride and padding."""
        y: Tensor = self.dw(self.pw(x))
        return y


class BlueprintBlock(DistillationBlock):
    """RFDN's block of blueprint separable convolutions, followed by contrast attention and a skip."""

    def __init__(self, dim: int) -> None:
        esa = ESA(dim, _ATTENTION, full=True, conv=BSConv, activation=functional.gelu)
        super().__init__(dim, conv=BSConv, activation=functional.gelu, esa=esa)
        self.cca = ContrastAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.cca(super().forward(x)) + x
        return y


@peer(
    small={"num_feat": 16, "num_block": 2, "upscale": 2},
    sizes={"BSRN": {}},
    paper=Paper(
        "Li, Liu, Chen, Cai, Gu, Qiao, Dong",
        "Blueprint Separable Residual Network for Efficient Image Super-Resolution",
        "CVPR Workshops 2022",
        "2205.05996",
    ),
    code=Code("xiaom233/BSRN", "MIT"),
    form=Form(smallest=SMALLEST),
)
class BSRN(nn.Module):
    """Blueprint separable residual network.

    Args:
        num_in_ch: Channels of the input.
        num_feat: Feature channels, a multiple of 16.
        num_block: Number of blocks.
        num_out_ch: Channels of the output.
        upscale: Scale of super-resolution.
        conv: The 3x3 convolutions; only ``BSConvU`` was published.
        upsampler: The last layer; only ``pixelshuffledirect`` was published.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the sides need not be multiples of a number.
        halo: None: its attention sees the whole image.
    """

    def __init__(
        self,
        num_in_ch: Positive = 3,
        num_feat: Positive = 64,
        num_block: Positive = 8,
        num_out_ch: Positive = 3,
        upscale: Positive = 4,
        conv: Literal["BSConvU"] = "BSConvU",
        upsampler: Literal["pixelshuffledirect"] = "pixelshuffledirect",
    ) -> None:
        super().__init__()
        self.scale, self.window, self.halo = upscale, 1, None
        self.num_block = num_block
        self.fea_conv = BSConv(num_in_ch * _COPIES, num_feat)
        for number in range(1, num_block + 1):
            self.add_module(f"B{number}", BlueprintBlock(num_feat))
        self.c1 = conv1(num_feat * num_block, num_feat)
        self.c2 = BSConv(num_feat, num_feat)
        self.upsampler = nn.ModuleDict({"upsampleOneStep": image_upsampler(num_feat, upscale, num_out_ch)})

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped; sides of at least 15."""
        features = self.fea_conv(torch.cat([x] * _COPIES, dim=1))
        outputs = [features]
        for number in range(1, self.num_block + 1):
            outputs.append(getattr(self, f"B{number}")(outputs[-1]))
        joined = functional.gelu(self.c1(torch.cat(outputs[1:], dim=1)))
        image: Tensor = self.upsampler["upsampleOneStep"](self.c2(joined) + features)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        last = "upsampler.upsampleOneStep.0.weight"
        if not same_names(shapes, "fea_conv.pw.weight", "B1.c1_r.pw.weight", "B1.cca.conv_du.0.weight", last):
            return None
        channels = shapes["fea_conv.pw.weight"][1] // _COPIES
        return {
            "num_in_ch": channels,
            "num_feat": shapes["fea_conv.pw.weight"][0],
            "num_block": indexed(shapes, "B"),
            "num_out_ch": channels,
            "upscale": shuffle_scale(shapes[last][0], channels),
        }
