"""LapSRN: a Laplacian pyramid whose levels double the size, Lai et al., CVPR 2017 (arXiv 1704.03915)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.parts import conv3, same_names
from safmn.archs.receptive import Conv, Step, TransposedConv, halo
from safmn.archs.shapes import Shapes

_DIM = 64
_DEPTH = 10  # convolutions of a level
_SLOPE = 0.2


def doubling(channels: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution that doubles the size. It begins as bilinear enlargement of each channel."""
    conv = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        conv.weight.copy_(torch.eye(channels)[:, :, None, None] * torch.outer(tent, tent))
    return conv


class Level(nn.Module):
    """Ten 3x3 convolutions and a transposed one that doubles the size, each followed by a leaky ReLU."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(_DEPTH):
            layers += [conv3(_DIM, _DIM, bias=False), nn.LeakyReLU(_SLOPE)]
        self.cov_block = nn.Sequential(*layers, doubling(_DIM), nn.LeakyReLU(_SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 64, h, w) to (B, 64, 2 * h, 2 * w)."""
        y: Tensor = self.cov_block(x)
        return y


@peer(
    small={"scale": 2},
    sizes={"LapSRN": {}},
    paper=Paper(
        "Lai, Huang, Ahuja, Yang",
        "Deep Laplacian Pyramid Networks for Fast and Accurate Super-Resolution",
        "CVPR 2017",
        "1704.03915",
    ),
    code=Code("twtygqyy/pytorch-LapSRN", "MIT"),
    form=Form(channels="Y"),
    scales=(2, 4),
    scale_argument="scale",
    note="The same weights serve x2 and x4. Tables count its transposed convolutions as 3x3 ones.",
)
class LapSRN(nn.Module):
    """Laplacian pyramid network for the Y channel of the small image, without biases.

    The same weights serve x2 (the first level alone) and x4. Published tables count the transposed convolutions of 64
    channels as 3x3 ones at the size of their output: 813K parameters and 149 G multiply-adds at x4; here they are
    870,112 and 125.7 G. The 30 G that they give for x2 are those for an output of 640x360 (here 100.7 G for 1280x720).

    Args:
        scale: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the image, in LR pixels to each side.
    """

    def __init__(self, scale: Literal[2, 4] = 4) -> None:
        super().__init__()
        self.scale, self.window = int(scale), 1
        level: list[Step] = [*[Conv()] * _DEPTH, TransposedConv(4, 2, padding=1)]
        self.halo = halo([Conv(), *level * (self.scale // 2), Conv()], self.window, self.scale)
        self.conv_input = conv3(1, _DIM, bias=False)
        self.convt_I1 = doubling(1)
        self.convt_R1 = conv3(_DIM, 1, bias=False)
        self.convt_F1 = nn.Sequential(Level())
        self.convt_I2 = doubling(1)
        self.convt_R2 = conv3(_DIM, 1, bias=False)
        self.convt_F2 = nn.Sequential(Level())
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=_SLOPE, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 1, h, w), Y in [0, 1], to (B, 1, h * scale, w * scale), unclamped."""
        features = self.convt_F1(functional.leaky_relu(self.conv_input(x), _SLOPE))  # (B, 64, 2 * h, 2 * w)
        image: Tensor = self.convt_I1(x) + self.convt_R1(features)  # (B, 1, 2 * h, 2 * w)
        if self.scale == 2:
            return image
        features = self.convt_F2(features)  # (B, 64, 4 * h, 4 * w)
        image = self.convt_I2(image) + self.convt_R2(features)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        names = ("conv_input.weight", "convt_I1.weight", "convt_R2.weight", "convt_F2.0.cov_block.20.weight")
        return {"scale": (2, 4)} if same_names(shapes, *names) else None
