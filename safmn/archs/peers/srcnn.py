"""SRCNN: three convolutions on the enlarged image, Dong et al., ECCV 2014 and TPAMI 2016 (arXiv 1501.00092)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.early import y_or_rgb
from safmn.archs.peers.parts import enlarged_halo
from safmn.archs.shapes import Shapes
from safmn.value_types import Positive


@peer(
    small={"upscale": 2},
    sizes={"SRCNN": {}},
    paper=Paper(
        "Dong, Loy, He, Tang",
        "Image Super-Resolution Using Deep Convolutional Networks",
        "TPAMI 2016",
        "1501.00092",
    ),
    code=Code("yjn870/SRCNN-pytorch", "none"),
    form=Form(channels="Y", enlarged=True),
    note="The same weights serve every scale.",
)
class SRCNN(nn.Module):
    """The first convolutional network for super-resolution, for the Y channel of a bicubically enlarged image.

    The original leaves out the border, which its convolutions without padding cannot compute. Here, as in later code,
    padding keeps the size.

    Args:
        num_channels: Channels of the image: 1 for Y, 3 for RGB.
        upscale: Scale by which the image was enlarged. The network itself does not depend on it.

    Attributes:
        scale: output pixels per LR pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the image, in LR pixels to each side.
        form: see :class:`safmn.archs.peers.Form`.

    Raises:
        OptionError: ``num_channels`` is neither 1 nor 3.
    """

    def __init__(self, num_channels: Positive = 1, upscale: Positive = 4) -> None:
        super().__init__()
        self.form = Form(channels=y_or_rgb(num_channels), enlarged=True)
        self.scale, self.window, self.halo = upscale, 1, enlarged_halo(4 + 2 + 2, upscale)
        self.conv1 = nn.Conv2d(num_channels, 64, 9, padding=4)
        self.conv2 = nn.Conv2d(64, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, num_channels, 5, padding=2)
        for conv in (self.conv1, self.conv2, self.conv3):  # the paper's initialisation
            nn.init.normal_(conv.weight, std=1e-3)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Enlarged image (B, num_channels, h, w), Y in [0, 1], to a sharper one of the same shape, unclamped."""
        x = functional.relu(self.conv1(x))  # (B, 64, h, w)
        x = functional.relu(self.conv2(x))  # (B, 32, h, w)
        image: Tensor = self.conv3(x)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        if set(shapes) != {f"conv{number}.{kind}" for number in (1, 2, 3) for kind in ("weight", "bias")}:
            return None
        return {"num_channels": shapes["conv3.weight"][0], "upscale": (2, 3, 4)}
