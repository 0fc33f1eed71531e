"""ESPCN: three convolutions and the first pixel shuffle, Shi et al., CVPR 2016 (arXiv 1609.05158)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.early import y_or_rgb
from safmn.archs.peers.parts import conv3, upsampler
from safmn.archs.receptive import Conv, halo
from safmn.archs.shapes import Shapes, shuffle_scale
from safmn.value_types import Positive


@peer(
    small={"scale_factor": 2},
    sizes={"ESPCN": {}},
    paper=Paper(
        "Shi, Caballero, Huszar, Totz, Aitken, Bishop, Rueckert, Wang",
        "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network",
        "CVPR 2016",
        "1609.05158",
    ),
    code=Code("yjn870/ESPCN-pytorch", "none"),
    form=Form(channels="Y"),
    scale_argument="scale_factor",
)
class ESPCN(nn.Module):
    """Efficient sub-pixel convolutional network, for the Y channel of the small image.

    Args:
        scale_factor: Scale of super-resolution.
        num_channels: Channels of the image: 1 for Y, 3 for RGB.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the image, in LR pixels to each side.
        form: see :class:`safmn.archs.peers.Form`.

    Raises:
        OptionError: ``num_channels`` is neither 1 nor 3.
    """

    def __init__(self, scale_factor: Positive = 4, num_channels: Positive = 1) -> None:
        super().__init__()
        self.form = Form(channels=y_or_rgb(num_channels))
        self.scale, self.window = scale_factor, 1
        self.halo = halo([Conv(2), Conv(), Conv()], self.window)
        self.first_part = nn.Sequential(nn.Conv2d(num_channels, 64, 5, padding=2), nn.Tanh(), conv3(64, 32), nn.Tanh())
        self.last_part = upsampler(32, scale_factor, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, num_channels, h, w), Y in [0, 1], to (B, num_channels, h * scale, w * scale), unclamped."""
        image: Tensor = self.last_part(self.first_part(x))
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        layers = ("first_part.0", "first_part.2", "last_part.0")
        if set(shapes) != {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}:
            return None
        num_channels = shapes["first_part.0.weight"][1]
        scale = shuffle_scale(shapes["last_part.0.weight"][0], num_channels)
        return {"scale_factor": scale, "num_channels": num_channels}
