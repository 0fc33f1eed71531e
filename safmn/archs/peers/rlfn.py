"""RLFN: residual local features, Kong et al., CVPR workshops 2022 (arXiv 2205.07514).

Its small form won the NTIRE 2022 challenge on efficient super-resolution.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.esa import ESA, SMALLEST
from safmn.archs.peers.parts import conv1, conv3, indexed, same_names, upsampler
from safmn.archs.shapes import Shapes, shuffle_scale
from safmn.value_types import Positive

_SLOPE = 0.05
_PAPER = Paper(
    "Kong, Li, Liu, Liu, He, Bai, Chen, Fu",
    "Residual Local Feature Network for Efficient Super-Resolution",
    "CVPR Workshops 2022",
    "2205.07514",
)
_CODE = Code("bytedance/RLFN", "Apache-2.0")
_FORM = Form(largest=255.0, smallest=SMALLEST)
_ATTENTION = 16


class LocalFeatureBlock(nn.Module):
    """Three convolutions with a skip, a 1x1 convolution and ESA."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.c1_r = conv3(dim, inner)
        self.c2_r = conv3(inner, inner)
        self.c3_r = conv3(inner, dim)
        self.c5 = conv1(dim, dim)
        self.esa = ESA(dim, _ATTENTION)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            y = functional.leaky_relu(conv(y), _SLOPE)
        y = self.esa(self.c5(y + x))
        return y


class _LocalFeatureNetwork(nn.Module):
    """What both forms of RLFN share."""

    blocks: ClassVar[int]

    def __init__(self, in_channels: int, out_channels: int, dim: int, inner: int, upscale: int) -> None:
        super().__init__()
        self.scale, self.window, self.halo = upscale, 1, None
        self.conv_1 = conv3(in_channels, dim)
        for number in range(1, self.blocks + 1):
            self.add_module(f"block_{number}", LocalFeatureBlock(dim, inner))
        self.conv_2 = conv3(dim, dim)
        self.upsampler = upsampler(dim, upscale, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 255], to (B, 3, h * scale, w * scale), unclamped; sides of at least 15."""
        features = self.conv_1(x)
        y = features
        for number in range(1, self.blocks + 1):
            y = getattr(self, f"block_{number}")(y)
        image: Tensor = self.upsampler(self.conv_2(y) + features)
        return image

    @classmethod
    def _arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        if not same_names(shapes, "conv_1.weight", "block_1.c1_r.weight", "block_1.esa.conv1.weight"):
            return None
        if indexed(shapes, "block_") != cls.blocks or "upsampler.0.weight" not in shapes:
            return None
        dim, channels = shapes["conv_1.weight"][:2]
        return {
            "in_channels": channels,
            "out_channels": channels,
            "feature_channels": dim,
            "upscale": shuffle_scale(shapes["upsampler.0.weight"][0], channels),
        }


@peer(
    small={"feature_channels": 16, "upscale": 2},
    sizes={"RLFN": {}, "RLFN-S": {"feature_channels": 48}},
    paper=_PAPER,
    code=_CODE,
    form=_FORM,
)
class RLFN(_LocalFeatureNetwork):
    """Residual local feature network.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        feature_channels: Feature channels.
        upscale: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the sides need not be multiples of a number.
        halo: None: its attention depends on the size of the image.
    """

    blocks = 6

    def __init__(
        self,
        in_channels: Positive = 3,
        out_channels: Positive = 3,
        feature_channels: Positive = 52,
        upscale: Positive = 4,
    ) -> None:
        super().__init__(in_channels, out_channels, feature_channels, feature_channels, upscale)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        return cls._arguments_from(shapes)


@peer(
    small={"feature_channels": 16, "mid_channels": 20, "upscale": 2},
    sizes={"RLFN-NTIRE": {}},
    paper=_PAPER,
    code=_CODE,
    form=_FORM,
    of_size={"RLFN-NTIRE": (4,)},
)
class RLFN_NTIRE(_LocalFeatureNetwork):
    """The winner of NTIRE 2022: four blocks, which are wider inside.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        feature_channels: Feature channels.
        mid_channels: Channels inside the blocks.
        upscale: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the sides need not be multiples of a number.
        halo: None: its attention depends on the size of the image.
    """

    blocks = 4

    def __init__(
        self,
        in_channels: Positive = 3,
        out_channels: Positive = 3,
        feature_channels: Positive = 46,
        mid_channels: Positive = 48,
        upscale: Positive = 4,
    ) -> None:
        super().__init__(in_channels, out_channels, feature_channels, mid_channels, upscale)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        found = cls._arguments_from(shapes)
        return found if found is None else {**found, "mid_channels": shapes["block_1.c1_r.weight"][0]}
