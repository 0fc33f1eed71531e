"""RFDN: residual feature distillation, Liu, Tang and Wu, ECCV workshops 2020 (arXiv 2009.11551).

It won the AIM 2020 challenge on efficient super-resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.esa import ESA, SMALLEST
from safmn.archs.peers.parts import conv1, conv3, indexed, same_names, upsampler
from safmn.archs.shapes import Shapes, shuffle_scale
from safmn.value_types import Positive

_SLOPE = 0.05


def _activation(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, _SLOPE)


class DistillationBlock(nn.Module):
    """Three times: keep half of the channels from a 1x1 convolution, refine the rest; then join what was kept.

    Args:
        dim: channels.
        conv: makes the 3x3 convolutions from input and output channels.
        activation: the function after each convolution.
        esa: the attention at the end.
    """

    def __init__(
        self,
        dim: int,
        *,
        conv: Callable[[int, int], nn.Module] = conv3,
        activation: Callable[[Tensor], Tensor] = _activation,
        esa: nn.Module | None = None,
    ) -> None:
        super().__init__()
        kept = dim // 2
        self.activation = activation
        for number in (1, 2, 3):
            self.add_module(f"c{number}_d", conv1(dim, kept))
            self.add_module(f"c{number}_r", conv(dim, dim))
        self.c4 = conv(dim, kept)
        self.c5 = conv1(kept * 4, dim)
        self.esa = esa or ESA(dim, dim // 4, full=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        kept = []
        for number in (1, 2, 3):
            kept.append(self.activation(getattr(self, f"c{number}_d")(x)))
            x = self.activation(getattr(self, f"c{number}_r")(x) + x)
        kept.append(self.activation(self.c4(x)))
        y: Tensor = self.esa(self.c5(torch.cat(kept, dim=1)))
        return y


@peer(
    small={"nf": 16, "num_modules": 2, "upscale": 2},
    sizes={"RFDN": {}},
    paper=Paper(
        "Liu, Tang, Wu",
        "Residual Feature Distillation Network for Lightweight Image Super-Resolution",
        "ECCV Workshops 2020",
        "2009.11551",
    ),
    code=Code("njulj/RFDN", "MIT"),
    form=Form(largest=255.0, smallest=SMALLEST),
)
class RFDN(nn.Module):
    """Residual feature distillation network.

    Args:
        in_nc: Channels of the input.
        nf: Feature channels, a multiple of 4.
        num_modules: Number of blocks.
        out_nc: Channels of the output.
        upscale: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the sides need not be multiples of a number.
        halo: None: its attention depends on the size of the image.
    """

    def __init__(
        self,
        in_nc: Positive = 3,
        nf: Positive = 50,
        num_modules: Positive = 4,
        out_nc: Positive = 3,
        upscale: Positive = 4,
    ) -> None:
        super().__init__()
        self.scale, self.window, self.halo = upscale, 1, None
        self.num_modules = num_modules
        self.fea_conv = conv3(in_nc, nf)
        for number in range(1, num_modules + 1):
            self.add_module(f"B{number}", DistillationBlock(nf))
        self.c = nn.Sequential(conv1(nf * num_modules, nf), nn.LeakyReLU(_SLOPE))
        self.LR_conv = conv3(nf, nf)
        self.upsampler = upsampler(nf, upscale, out_nc)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 255], to (B, 3, h * scale, w * scale), unclamped; sides of at least 15."""
        features = self.fea_conv(x)
        outputs = [features]
        for number in range(1, self.num_modules + 1):
            outputs.append(getattr(self, f"B{number}")(outputs[-1]))
        joined = self.LR_conv(self.c(torch.cat(outputs[1:], dim=1))) + features
        image: Tensor = self.upsampler(joined)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        if not same_names(shapes, "fea_conv.weight", "B1.c1_d.weight", "B1.c1_r.weight", "upsampler.0.weight"):
            return None
        nf, channels = shapes["fea_conv.weight"][:2]
        return {
            "in_nc": channels,
            "nf": nf,
            "num_modules": indexed(shapes, "B"),
            "out_nc": channels,
            "upscale": shuffle_scale(shapes["upsampler.0.weight"][0], channels),
        }
