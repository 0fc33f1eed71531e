"""ECBSR: convolutions that are trained as five parallel branches and folded into one, Zhang et al., ACM MM 2021."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.early import y_or_rgb
from safmn.archs.peers.parts import conv3, same_names
from safmn.archs.receptive import Conv, halo
from safmn.archs.shapes import Shapes, length, shuffle_scale
from safmn.value_types import NotNegative, Positive

logger = logging.getLogger(__name__)

PAPER = Paper(
    "Zhang, Zeng, Zhang",
    "Edge-Oriented Convolution Block for Real-Time Super Resolution on Mobile Devices",
    "ACM MM 2021",
)
CODE = Code("xindongzhang/ECBSR", "Apache-2.0")
Activation = Literal["prelu", "relu"]
Kernel = tuple[Tensor, Tensor]
"""Weight and bias of a 3x3 convolution."""

_EDGES = {  # first derivatives (Sobel) along a row and along a column, and second derivatives
    "sbx": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "sby": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "lpl": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
}


def _parameters(conv: nn.Conv2d) -> tuple[nn.Parameter, nn.Parameter]:
    """Return a new convolution's weight and bias, with their usual random values."""
    return conv.weight, conv.bias  # type: ignore[return-value]


class Branch(nn.Module):
    """A 1x1 convolution (``k0``, ``b0``) and a 3x3 one behind it.

    Between them, the border is padded with ``b0``, which is what the 1x1 convolution makes of a border of zeros.
    """

    k0: nn.Parameter
    b0: nn.Parameter

    def __init__(self, inward: int, middle: int) -> None:
        super().__init__()
        self.k0, self.b0 = _parameters(nn.Conv2d(inward, middle, 1))

    def second(self) -> Kernel:
        """Return the 3x3 convolution as a dense one, (outward, middle, 3, 3) and (outward,)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inward, h, w) to (B, outward, h, w)."""
        padded = functional.conv2d(functional.pad(x, (1, 1, 1, 1)), self.k0, self.b0)
        return functional.conv2d(padded, *self.second())

    def folded(self) -> Kernel:
        """Return both convolutions as one."""
        weight, bias = self.second()
        joined = torch.einsum("omhw,mi->oihw", weight, self.k0[:, :, 0, 0])
        return joined, bias + torch.einsum("omhw,m->o", weight, self.b0)


class Wide(Branch):
    """A branch whose middle is twice as wide as its result."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__(inward, 2 * outward)
        self.k1, self.b1 = _parameters(nn.Conv2d(2 * outward, outward, 3))

    def second(self) -> Kernel:
        """See :class:`Branch`."""
        return self.k1, self.b1


class Edge(Branch):
    """A branch with a fixed edge filter, ``scale`` times ``mask``, for each channel."""

    def __init__(self, inward: int, outward: int, mask: Sequence[Sequence[int]]) -> None:
        super().__init__(inward, outward)
        self.scale = nn.Parameter(torch.randn(outward, 1, 1, 1) * 1e-3)
        self.bias = nn.Parameter(torch.randn(outward) * 1e-3)
        filters = torch.tensor(mask, dtype=torch.float32).expand(outward, 1, 3, 3).clone()
        self.mask = nn.Parameter(filters, requires_grad=False)

    def second(self) -> Kernel:
        """See :class:`Branch`."""
        each = (self.scale * self.mask)[:, 0]  # (outward, 3, 3)
        return torch.diag_embed(each.permute(1, 2, 0)).permute(2, 3, 0, 1), self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inward, h, w) to (B, outward, h, w)."""
        padded = functional.conv2d(functional.pad(x, (1, 1, 1, 1)), self.k0, self.b0)
        return functional.conv2d(padded, self.scale * self.mask, self.bias, groups=len(self.mask))


class EdgeBlock(nn.Module):
    """A 3x3 convolution that is the sum of five branches, and an activation.

    Args:
        inward, outward: Channels.
        with_idt: Whether the input is added, if it has as many channels as the result.
        act_type: ``prelu``, ``relu``, or None for none.
    """

    def __init__(self, inward: int, outward: int, with_idt: bool, act_type: Activation | None) -> None:
        super().__init__()
        self.identity = with_idt and inward == outward
        self.conv3x3 = conv3(inward, outward)
        self.conv1x1_3x3 = Wide(inward, outward)
        for name, mask in _EDGES.items():
            self.add_module(f"conv1x1_{name}", Edge(inward, outward, mask))
        self.act = activation(act_type, outward)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inward, h, w) to (B, outward, h, w)."""
        y: Tensor = self.conv3x3(x)
        for branch in self.branches():
            y = y + branch(x)
        y = self.act(y + x if self.identity else y)
        return y

    def branches(self) -> list[Branch]:
        """Return the four branches besides the plain convolution."""
        return [module for module in self.children() if isinstance(module, Branch)]

    @torch.no_grad()
    def fold_into(self, block: PlainBlock) -> None:
        """Write the sum of all branches into one convolution."""
        weight, bias = self.conv3x3.weight.double(), self.conv3x3.bias.double()  # type: ignore[union-attr]
        for branch in self.branches():
            more = branch.double().folded()
            weight, bias = weight + more[0], bias + more[1]
        if self.identity:
            weight[range(len(weight)), range(len(weight)), 1, 1] += 1
        block.conv3x3.weight.copy_(weight)
        block.conv3x3.bias.copy_(bias)  # type: ignore[union-attr]
        block.act.load_state_dict(self.act.state_dict())


class PlainBlock(nn.Module):
    """A 3x3 convolution and an activation."""

    def __init__(self, inward: int, outward: int, act_type: Activation | None) -> None:
        super().__init__()
        self.conv3x3 = conv3(inward, outward)
        self.act = activation(act_type, outward)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inward, h, w) to (B, outward, h, w)."""
        y: Tensor = self.act(self.conv3x3(x))
        return y


def activation(act_type: Activation | None, channels: int) -> nn.Module:
    """Return an activation; ``prelu`` has a slope for each channel."""
    if act_type is None:
        return nn.Identity()
    return nn.PReLU(channels) if act_type == "prelu" else nn.ReLU()


class _Frame(nn.Module):
    """What both forms of ECBSR share.

    Args:
        blocks: The convolutions; the last one makes the pixels.
        scale: Scale of super-resolution.
        colors: Channels of the image.
    """

    def __init__(self, blocks: Sequence[nn.Module], scale: int, colors: int) -> None:
        super().__init__()
        self.form = Form(channels=y_or_rgb(colors))
        self.scale, self.window = scale, 1
        self.halo = halo([Conv()] * len(blocks), self.window)
        self.backbone = nn.Sequential(*blocks)
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, colors, h, w), Y in [0, 1], to (B, colors, h * scale, w * scale), unclamped."""
        pixels = x[:, :, None].expand(-1, -1, self.scale**2, -1, -1)  # each pixel's value for all of its HR pixels
        image: Tensor = self.upsampler(self.backbone(x) + pixels.flatten(1, 2))
        return image


def _arguments(shapes: Shapes) -> dict[str, Any] | None:
    """Return the arguments that both forms share, from the shapes of a state dict."""
    blocks = length(shapes, "backbone")
    last = f"backbone.{blocks - 1}.conv3x3.weight"
    if blocks < 2 or not same_names(shapes, "backbone.0.conv3x3.weight", last):
        return None
    channels, colors = shapes["backbone.0.conv3x3.weight"][:2]
    return {
        "module_nums": blocks - 2,
        "channel_nums": channels,
        "act_type": "prelu" if "backbone.0.act.weight" in shapes else "relu",
        "scale": shuffle_scale(shapes[last][0], colors),
        "colors": colors,
    }


def training_arguments(shapes: Shapes) -> dict[str, Any] | None:
    """Return the arguments of a training form, :class:`ECBSR_Y` or BasicSR's ECBSR, and warn of what is unknown."""
    found = _arguments(shapes) if "backbone.0.conv1x1_3x3.k0" in shapes else None
    if found is not None:
        logger.warning(
            "ECBSR's weights in training form do not say with_idt (whether blocks add their input); it is taken as "
            "false. If it is true, name the network in an option file."
        )
    return found


@peer(
    small={"module_nums": 2, "channel_nums": 8, "scale": 2},
    sizes={"ECBSR-M16C64": {}},
    paper=PAPER,
    code=CODE,
    form=Form(channels="Y"),
    scales=(2, 4),
    scale_argument="scale",
    note="Folded for inference.",
)
class ECBSR_PLAIN(_Frame):
    """ECBSR folded for inference: plain 3x3 convolutions, for the Y channel of the small image.

    Published tables have 1,088 parameters more at M16C64, as if they counted PReLU twice.

    Args:
        module_nums: Number of convolutions between the first and the last.
        channel_nums: Feature channels.
        act_type: Activation behind each convolution but the last.
        scale: Scale of super-resolution.
        colors: Channels of the image: 1 for Y, 3 for RGB.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the input, in LR pixels to each side.
        form: see :class:`safmn.archs.peers.Form`.

    Raises:
        OptionError: ``colors`` is neither 1 nor 3.
    """

    def __init__(
        self,
        module_nums: NotNegative = 16,
        channel_nums: Positive = 64,
        act_type: Activation = "prelu",
        scale: Positive = 4,
        colors: Positive = 1,
    ) -> None:
        dims = [colors, *[channel_nums] * (module_nums + 1)]
        blocks = [PlainBlock(inward, channel_nums, act_type) for inward in dims[:-1]]
        super().__init__([*blocks, PlainBlock(channel_nums, colors * scale**2, None)], scale, colors)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        return None if "backbone.0.conv1x1_3x3.k0" in shapes else _arguments(shapes)


@peer(
    small={"module_nums": 2, "channel_nums": 8, "scale": 2},
    sizes={"ECBSR-M16C64 (training form)": {}},
    paper=PAPER,
    code=CODE,
    form=Form(channels="Y"),
    scales=(2, 4),
    scale_argument="scale",
    note="The training form; BasicSR's ECBSR is its form for RGB.",
)
class ECBSR_Y(_Frame):
    """ECBSR as it is trained: each convolution is a sum of five branches; :meth:`folded` makes them one.

    Args:
        module_nums: Number of convolutions between the first and the last.
        channel_nums: Feature channels.
        with_idt: Whether each block adds its input, where the channels agree. Weights have the same shapes either way.
        act_type: Activation behind each convolution but the last.
        scale: Scale of super-resolution.
        colors: Channels of the image: 1 for Y, 3 for RGB.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the input, in LR pixels to each side.
        form: see :class:`safmn.archs.peers.Form`.

    Raises:
        OptionError: ``colors`` is neither 1 nor 3.
    """

    def __init__(
        self,
        module_nums: NotNegative = 16,
        channel_nums: Positive = 64,
        with_idt: bool = False,
        act_type: Activation = "prelu",
        scale: Positive = 4,
        colors: Positive = 1,
    ) -> None:
        dims = [colors, *[channel_nums] * (module_nums + 1)]
        blocks = [EdgeBlock(inward, channel_nums, with_idt, act_type) for inward in dims[:-1]]
        super().__init__([*blocks, EdgeBlock(channel_nums, colors * scale**2, with_idt, None)], scale, colors)
        self.arguments = {"module_nums": module_nums, "channel_nums": channel_nums, "act_type": act_type}

    def folded(self) -> ECBSR_PLAIN:
        """Return the network for inference, with equal output; sums are in double precision."""
        colors = 1 if self.form.channels == "Y" else 3
        plain = ECBSR_PLAIN(**self.arguments, scale=self.scale, colors=colors)  # type: ignore[arg-type]
        for block, target in zip(copy.deepcopy(self).backbone, plain.backbone, strict=True):
            block.fold_into(target)  # type: ignore[operator]
        return plain.to(next(self.parameters()).device).train(self.training)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        found = training_arguments(shapes)
        return None if found is None or found["colors"] != 1 else found  # with more colours, it is BasicSR's ECBSR
