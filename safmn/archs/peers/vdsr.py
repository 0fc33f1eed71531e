"""VDSR: twenty convolutions on the enlarged image and a skip around them, Kim et al., CVPR 2016 (arXiv 1511.04587)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.parts import conv3, enlarged_halo
from safmn.archs.shapes import Shapes
from safmn.value_types import Positive

_DIM = 64
_INNER = 18  # convolutions between the first and the last


class ConvReLU(nn.Module):
    """A 3x3 convolution and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv3(_DIM, _DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 64, h, w) to the same shape."""
        return functional.relu(self.conv(x))


@peer(
    small={"upscale": 2},
    sizes={"VDSR": {}},
    paper=Paper(
        "Kim, Lee, Lee",
        "Accurate Image Super-Resolution Using Very Deep Convolutional Networks",
        "CVPR 2016",
        "1511.04587",
    ),
    code=Code("twtygqyy/pytorch-vdsr", "MIT"),
    form=Form(channels="Y", enlarged=True),
    note="The same weights serve every scale.",
)
class VDSR(nn.Module):
    """Very deep network for the Y channel of a bicubically enlarged image; one network for all scales.

    It has no biases, as in the code whose weights are published (664,704 parameters). The paper's has (665,921).

    Args:
        upscale: Scale by which the image was enlarged. The network itself does not depend on it.

    Attributes:
        scale: output pixels per LR pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the image, in LR pixels to each side.
    """

    def __init__(self, upscale: Positive = 4) -> None:
        super().__init__()
        self.scale, self.window, self.halo = upscale, 1, enlarged_halo(_INNER + 2, upscale)
        self.residual_layer = nn.Sequential(*[ConvReLU() for _ in range(_INNER)])
        self.input = conv3(1, _DIM, bias=False)
        self.output = conv3(_DIM, 1, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Enlarged image (B, 1, h, w), Y in [0, 1], to a sharper one of the same shape, unclamped."""
        features = self.residual_layer(functional.relu(self.input(x)))  # (B, 64, h, w)
        image: Tensor = self.output(features) + x
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        inner = {f"residual_layer.{number}.conv.weight" for number in range(_INNER)}
        return {"upscale": (2, 3, 4)} if set(shapes) == inner | {"input.weight", "output.weight"} else None
