"""SPAN: swift parameter-free attention, Wan et al., CVPR workshops 2024 (arXiv 2311.12770).

It won the NTIRE 2024 challenge on efficient super-resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Paper, peer
from safmn.archs.peers.parts import RGB_MEAN, conv1, conv3, exact, minus, same_names, shifted, upsampler
from safmn.archs.receptive import Conv, halo
from safmn.archs.shapes import Shapes, shuffle_scale
from safmn.value_types import Positive, PositiveFloat

_BLOCKS = 6
_GAIN = 2
_PAPER = Paper(
    "Wan, Yu, Wu, Chen, Chen, Wang, Chen, Chen, Cao, Liu",
    "Swift Parameter-free Attention Network for Efficient Super-Resolution",
    "CVPR Workshops 2024",
    "2311.12770",
)
_CODE = Code("hongyuanyu/SPAN", "Apache-2.0")


class FoldedConv(nn.Module):
    """The 3x3 convolution that a :class:`BranchedConv` becomes for inference. It is not trained."""

    def __init__(self, inward: int, outward: int, bias: bool = True) -> None:
        super().__init__()
        self.eval_conv = conv3(inward, outward, bias=bias).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inward, h, w) to (B, outward, h, w)."""
        y: Tensor = self.eval_conv(x)
        return y


class BranchedConv(nn.Module):
    """A convolution that is trained as a 1x1, 3x3, 1x1 chain beside a 1x1 skip, and runs as one 3x3 convolution.

    ``eval_conv`` only keeps the name in the published files; its values are computed from the branches.
    """

    def __init__(self, inward: int, outward: int, bias: bool = True) -> None:
        super().__init__()
        wide_in, wide_out = inward * _GAIN, outward * _GAIN
        self.sk = conv1(inward, outward, bias=bias)
        self.conv = nn.Sequential(
            conv1(inward, wide_in, bias=bias),
            nn.Conv2d(wide_in, wide_out, 3, bias=bias),
            conv1(wide_out, outward, bias=bias),
        )
        self.eval_conv = conv3(inward, outward, bias=bias).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inward, h, w) to (B, outward, h, w)."""
        if not self.training:
            return functional.conv2d(x, *self.folded(), padding=1)
        y: Tensor = self.conv(functional.pad(x, (1, 1, 1, 1))) + self.sk(x)
        return y

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the equal 3x3 convolution."""
        first, middle, last = (exact(conv) for conv in self.conv)
        skip = exact(self.sk)
        inward, outward = first.weight[:, :, 0, 0], last.weight[:, :, 0, 0]
        mixed = torch.einsum("om,mnyx,ni->oiyx", outward, middle.weight, inward)
        weight = (mixed + functional.pad(skip.weight, (1, 1, 1, 1))).to(self.sk.weight.dtype)
        if first.bias is None or middle.bias is None or last.bias is None or skip.bias is None:
            return weight, None
        inner = middle.weight.sum((2, 3)) @ first.bias + middle.bias
        return weight, (outward @ inner + last.bias + skip.bias).to(self.sk.weight.dtype)


class AttentionBlock(nn.Module):
    """Three convolutions; the last one's output, made odd around zero, is the attention."""

    def __init__(self, dim: int, conv: type[BranchedConv] | type[FoldedConv], bias: bool) -> None:
        super().__init__()
        self.c1_r = conv(dim, dim, bias)
        self.c2_r = conv(dim, dim, bias)
        self.c3_r = conv(dim, dim, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, dim, h, w) to the block's output and the first activation, of the same shape."""
        first = functional.silu(self.c1_r(x))
        y = self.c3_r(functional.silu(self.c2_r(first)))
        return (y + x) * (torch.sigmoid(y) - 0.5), first


class _Span(nn.Module):
    """What both forms of SPAN share."""

    def __init__(
        self,
        conv: type[BranchedConv] | type[FoldedConv],
        num_in_ch: int,
        num_out_ch: int,
        dim: int,
        upscale: int,
        bias: bool,
        img_range: float,
        rgb_mean: Sequence[float],
    ) -> None:
        super().__init__()
        self.scale, self.window = upscale, 1
        self.halo = halo([Conv()] * (3 * _BLOCKS + 3), self.window)
        self.settings: dict[str, Any] = {"num_in_ch": num_in_ch, "num_out_ch": num_out_ch, "feature_channels": dim}
        self.settings |= {"upscale": upscale, "bias": bias, "img_range": img_range, "rgb_mean": tuple(rgb_mean)}
        self.img_range, self.rgb_mean = img_range, tuple(rgb_mean)
        self.conv_1 = conv(num_in_ch, dim, bias)
        for number in range(1, _BLOCKS + 1):
            self.add_module(f"block_{number}", AttentionBlock(dim, conv, bias))
        self.conv_cat = conv1(4 * dim, dim)
        self.conv_2 = conv(dim, dim, bias)
        self.upsampler = upsampler(dim, upscale, num_out_ch)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped."""
        features = self.conv_1(shifted(x, minus(self.rgb_mean)) * self.img_range)
        y, earliest, inner = features, features, features
        for number in range(1, _BLOCKS + 1):
            y, inner = getattr(self, f"block_{number}")(y)
            earliest = y if number == 1 else earliest
        joined = self.conv_cat(torch.cat([features, self.conv_2(y), earliest, inner], dim=1))
        image: Tensor = self.upsampler(joined)
        return image


def _arguments_from(shapes: Shapes, first: str) -> dict[str, Any] | None:
    if not same_names(shapes, first, "block_6.c3_r.eval_conv.weight", "conv_cat.weight", "upsampler.0.weight"):
        return None
    dim, channels = shapes["conv_1.eval_conv.weight"][:2]
    return {
        "num_in_ch": channels,
        "num_out_ch": channels,
        "feature_channels": dim,
        "upscale": shuffle_scale(shapes["upsampler.0.weight"][0], channels),
        "bias": "conv_1.eval_conv.bias" in shapes,
    }


@peer(
    small={"feature_channels": 8, "upscale": 2},
    sizes={"SPAN": {}},
    paper=_PAPER,
    code=_CODE,
    note="The form for training; it runs as SPAN_deploy.",
)
class SPAN(_Span):
    """Swift parameter-free attention network, in the form for training: each convolution has branches.

    Args:
        num_in_ch: Channels of the input.
        num_out_ch: Channels of the output.
        feature_channels: Feature channels.
        upscale: Scale of super-resolution.
        bias: Whether the convolutions with branches have biases.
        img_range: Factor on the image after the mean is subtracted.
        rgb_mean: Mean of the colours.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the input, in LR pixels to each side.
    """

    def __init__(
        self,
        num_in_ch: Positive = 3,
        num_out_ch: Positive = 3,
        feature_channels: Positive = 48,
        upscale: Positive = 4,
        bias: bool = True,
        img_range: PositiveFloat = 255.0,
        rgb_mean: tuple[float, float, float] = RGB_MEAN,
    ) -> None:
        super().__init__(BranchedConv, num_in_ch, num_out_ch, feature_channels, upscale, bias, img_range, rgb_mean)

    def folded(self) -> SPAN_deploy:
        """Return the network for inference, with the same output up to rounding."""
        twin = SPAN_deploy(**self.settings)
        state = self.state_dict()
        for name, module in self.named_modules():
            if isinstance(module, BranchedConv):
                weight, bias = module.folded()
                state[f"{name}.eval_conv.weight"] = weight
                if bias is not None:
                    state[f"{name}.eval_conv.bias"] = bias
        twin.load_state_dict({name: state[name] for name in twin.state_dict()})
        return twin.to(self.conv_cat.weight.device).eval()

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        return _arguments_from(shapes, "conv_1.sk.weight")


@peer(
    small={"feature_channels": 8, "upscale": 2},
    sizes={"SPAN (folded)": {}, "SPAN ch28": {"feature_channels": 28}, "SPAN ch26": {"feature_channels": 26}},
    paper=_PAPER,
    code=_CODE,
    of_size={"SPAN ch28": (4,), "SPAN ch26": (4,)},
    note="SPAN's form for inference; its 3x3 convolutions do not train.",
)
class SPAN_deploy(_Span):
    """SPAN in the form for inference. Its 3x3 convolutions are not trained; train ``SPAN``.

    Args:
        num_in_ch: Channels of the input.
        num_out_ch: Channels of the output.
        feature_channels: Feature channels.
        upscale: Scale of super-resolution.
        bias: Whether the folded convolutions have biases.
        img_range: Factor on the image after the mean is subtracted.
        rgb_mean: Mean of the colours.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the input, in LR pixels to each side.
    """

    def __init__(
        self,
        num_in_ch: Positive = 3,
        num_out_ch: Positive = 3,
        feature_channels: Positive = 48,
        upscale: Positive = 4,
        bias: bool = True,
        img_range: PositiveFloat = 255.0,
        rgb_mean: tuple[float, float, float] = RGB_MEAN,
    ) -> None:
        super().__init__(FoldedConv, num_in_ch, num_out_ch, feature_channels, upscale, bias, img_range, rgb_mean)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        return None if "conv_1.sk.weight" in shapes else _arguments_from(shapes, "conv_1.eval_conv.weight")
