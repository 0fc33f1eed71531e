"""FSRCNN: features at the small size, then a transposed convolution, Dong et al., ECCV 2016 (arXiv 1608.00367)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.early import y_or_rgb
from safmn.archs.peers.parts import same_names
from safmn.archs.receptive import Conv, Step, TransposedConv, halo
from safmn.archs.shapes import Shapes
from safmn.value_types import NotNegative, Positive


def _conv(inward: int, outward: int, size: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inward, outward, size, padding=size // 2), nn.PReLU(outward)


@peer(
    small={"scale_factor": 3, "d": 8, "s": 4, "m": 2},
    sizes={"FSRCNN": {}},
    paper=Paper(
        "Dong, Loy, Tang", "Accelerating the Super-Resolution Convolutional Neural Network", "ECCV 2016", "1608.00367"
    ),
    code=Code("yjn870/FSRCNN-pytorch", "none"),
    form=Form(channels="Y"),
    scale_argument="scale_factor",
    note="Tables count its transposed convolution at the size of the output, fvcore at that of the input.",
)
class FSRCNN(nn.Module):
    """A faster SRCNN, for the Y channel of the small image.

    The weights have the same shapes at every scale. Published tables count the transposed convolution at the size of
    its output (5 to 6 G multiply-adds for 1280x720). fvcore counts it at the size of its input (2.87, 1.28 and 0.72 G
    at x2, x3 and x4).

    Args:
        scale_factor: Scale of super-resolution.
        num_channels: Channels of the image: 1 for Y, 3 for RGB.
        d: Feature channels.
        s: Channels after shrinking.
        m: Number of 3x3 convolutions between shrinking and expanding.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the image, in LR pixels to each side.
        form: see :class:`safmn.archs.peers.Form`.

    Raises:
        OptionError: ``num_channels`` is neither 1 nor 3.
    """

    def __init__(
        self,
        scale_factor: Positive = 4,
        num_channels: Positive = 1,
        d: Positive = 56,
        s: Positive = 12,
        m: NotNegative = 4,
    ) -> None:
        super().__init__()
        self.form = Form(channels=y_or_rgb(num_channels))
        self.scale, self.window = scale_factor, 1
        steps: list[Step] = [Conv(2), *[Conv()] * m, TransposedConv(9, scale_factor, padding=4)]
        self.halo = halo(steps, self.window, self.scale)
        middle = [layer for _ in range(m) for layer in _conv(s, s, 3)]
        self.first_part = nn.Sequential(*_conv(num_channels, d, 5))
        self.mid_part = nn.Sequential(*_conv(d, s, 1), *middle, *_conv(s, d, 1))
        self.last_part = nn.ConvTranspose2d(d, num_channels, 9, scale_factor, 4, output_padding=scale_factor - 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=0.25)  # 0.25 is PReLU's initial slope
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.last_part.weight, std=1e-3)
        nn.init.zeros_(self.last_part.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, num_channels, h, w), Y in [0, 1], to (B, num_channels, h * scale, w * scale), unclamped."""
        x = self.mid_part(self.first_part(x))  # (B, d, h, w)
        image: Tensor = self.last_part(x)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        if not same_names(
            shapes, "first_part.0.weight", "first_part.1.weight", "mid_part.0.weight", "last_part.weight"
        ):
            return None
        d, num_channels = shapes["first_part.0.weight"][:2]
        layers = sum(name.startswith("mid_part.") and name.endswith(".bias") for name in shapes)
        return {
            "scale_factor": (2, 3, 4),
            "num_channels": num_channels,
            "d": d,
            "s": shapes["mid_part.0.weight"][0],
            "m": max(layers - 2, 0),
        }
