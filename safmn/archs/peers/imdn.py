"""IMDN: information multi-distillation, Hui et al., ACM MM 2019 (arXiv 1909.11856)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Paper, peer
from safmn.archs.peers.parts import conv1, conv3, indexed, same_names, upsampler
from safmn.archs.shapes import Shapes, shuffle_scale
from safmn.value_types import Positive

_SLOPE = 0.05


class ContrastAttention(nn.Module):
    """Scale each channel by a function of its contrast: standard deviation plus mean over the image."""

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            conv1(dim, dim // reduction), nn.ReLU(), conv1(dim // reduction, dim), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        mean = functional.adaptive_avg_pool2d(x, 1)  # (B, dim, 1, 1); not x.mean: fvcore counts this pooling
        deviation = (x - mean).square().mean((2, 3), keepdim=True).sqrt()
        gate: Tensor = self.conv_du(deviation + mean)
        return x * gate


class IMDB(nn.Module):
    """Three times: convolve, keep a quarter of the channels, pass the rest on; then join what was kept."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.kept = dim // 4
        rest = dim - self.kept
        self.c1 = conv3(dim, dim)
        self.c2 = conv3(rest, dim)
        self.c3 = conv3(rest, dim)
        self.c4 = conv3(rest, self.kept)
        self.c5 = conv1(dim, dim)
        self.cca = ContrastAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        kept, rest = [], x
        for conv in (self.c1, self.c2, self.c3):
            y = functional.leaky_relu(conv(rest), _SLOPE)
            part, rest = y.split([self.kept, y.shape[1] - self.kept], dim=1)
            kept.append(part)
        joined = torch.cat([*kept, self.c4(rest)], dim=1)  # (B, dim, h, w)
        y = self.c5(self.cca(joined))
        return y + x


@peer(
    small={"nf": 16, "num_modules": 2, "upscale": 2},
    sizes={"IMDN": {}},
    paper=Paper(
        "Hui, Gao, Yang, Wang",
        "Lightweight Image Super-Resolution with Information Multi-distillation Network",
        "ACM MM 2019",
        "1909.11856",
    ),
    code=Code("Zheng222/IMDN", "none"),
)
class IMDN(nn.Module):
    """Information multi-distillation network.

    Args:
        in_nc: Channels of the input.
        nf: Feature channels, a multiple of 16.
        num_modules: Number of blocks.
        out_nc: Channels of the output.
        upscale: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: None: its attention sees the whole image.
    """

    def __init__(
        self,
        in_nc: Positive = 3,
        nf: Positive = 64,
        num_modules: Positive = 6,
        out_nc: Positive = 3,
        upscale: Positive = 4,
    ) -> None:
        super().__init__()
        self.scale, self.window, self.halo = upscale, 1, None
        self.num_modules = num_modules
        self.fea_conv = conv3(in_nc, nf)
        for number in range(1, num_modules + 1):
            self.add_module(f"IMDB{number}", IMDB(nf))
        self.c = nn.Sequential(conv1(nf * num_modules, nf), nn.LeakyReLU(_SLOPE))
        self.LR_conv = conv3(nf, nf)
        self.upsampler = upsampler(nf, upscale, out_nc)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped."""
        features = self.fea_conv(x)
        outputs = [features]
        for number in range(1, self.num_modules + 1):
            outputs.append(getattr(self, f"IMDB{number}")(outputs[-1]))
        joined = self.LR_conv(self.c(torch.cat(outputs[1:], dim=1))) + features
        image: Tensor = self.upsampler(joined)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        if not same_names(shapes, "fea_conv.weight", "IMDB1.c1.weight", "IMDB1.cca.conv_du.0.weight", "LR_conv.weight"):
            return None
        nf, in_nc = shapes["fea_conv.weight"][:2]
        channels = shapes["upsampler.0.weight"][0]
        return {
            "in_nc": in_nc,
            "nf": nf,
            "num_modules": indexed(shapes, "IMDB"),
            "out_nc": in_nc,
            "upscale": shuffle_scale(channels, in_nc),
        }
