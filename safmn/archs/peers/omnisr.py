"""OmniSR: attention over places and over channels, near and far, Wang et al., CVPR 2023 (arXiv 2304.10244)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.blocks import ChannelNorm
from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.esa import ESA
from safmn.archs.peers.parts import conv1, conv3, same_names, upsampler
from safmn.archs.shapes import Shapes, length, shuffle_scale
from safmn.errors import OptionError
from safmn.value_types import Positive

_HEADS = 4


class Grouping:
    """Groups of pixels: neighbours, or pixels at equal distances, spread over the whole image.

    Args:
        cells: Each side of the image is divided into ``cells[0]`` parts of ``cells[1]`` pixels; -1 is the other factor.
        spread: Whether a group has the pixels at the same place in all parts; otherwise it is one part.
    """

    def __init__(self, cells: tuple[int, int], spread: bool) -> None:
        self.cells = cells
        self.order = (0, 3, 5, 2, 4, 1) if spread else (0, 2, 4, 3, 5, 1)
        self.back = (0, 5, 3, 1, 4, 2) if spread else (0, 5, 1, 3, 2, 4)

    def split(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, rows of groups, columns of groups, rows in a group, columns in a group, C)."""
        batch, channels, height, width = x.shape
        return x.reshape(batch, channels, *self._divided(height), *self._divided(width)).permute(self.order)

    def join(self, groups: Tensor) -> Tensor:
        """Undo :meth:`split`."""
        planes = groups.permute(self.back)
        batch, channels, *cells = planes.shape
        return planes.reshape(batch, channels, cells[0] * cells[1], cells[2] * cells[3])

    def _divided(self, side: int) -> tuple[int, int]:
        parts, pixels = self.cells
        return (side // pixels, pixels) if parts < 0 else (parts, side // parts)


class SqueezeExcitation(nn.Module):
    """Scale each channel by a function of the channels' means over the image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = dim // 4
        self.gate = nn.Sequential(
            nn.Identity(),
            nn.Linear(dim, inner, bias=False),
            nn.SiLU(),
            nn.Linear(inner, dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        gate: Tensor = self.gate(x.mean((2, 3)))  # (B, dim)
        return x * gate[:, :, None, None]


def local_mixer(dim: int) -> nn.Sequential:
    """Return an inverted bottleneck (MBConv) that keeps the channels."""
    return nn.Sequential(
        conv1(dim, dim), nn.GELU(), conv3(dim, dim, groups=dim), nn.GELU(), SqueezeExcitation(dim), conv1(dim, dim)
    )


class PlaceAttention(nn.Module):
    """Attention between the pixels of a group, with a bias for each offset."""

    def __init__(self, dim: int, grouping: Grouping, side: int) -> None:
        super().__init__()
        self.grouping, self.side = grouping, side
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim, bias=False))
        self.rel_pos_bias = nn.Embedding((2 * side - 1) ** 2, _HEADS)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Map (B, dim, h, w) to the same shape; ``norm`` normalises the last dimension."""
        groups = self.grouping.split(x)
        dim, pixels = groups.shape[5], self.side**2
        parts = self.to_qkv(norm(groups)).reshape(-1, pixels, 3, _HEADS, dim // _HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)  # (groups, heads, pixels, dim / heads)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + self._bias()
        mixed = (scores.softmax(-1) @ value).transpose(1, 2)  # (groups, pixels, heads, dim / heads)
        return self.grouping.join(self.to_out(mixed.reshape(groups.shape)))

    def _bias(self) -> Tensor:
        """Return the bias of each pair of pixels, (heads, pixels, pixels)."""
        side = self.side
        places = torch.arange(side, device=self.rel_pos_bias.weight.device)
        offsets = places[:, None] - places + side - 1  # (side, side)
        rows, columns = offsets[:, None, :, None], offsets[None, :, None, :]
        index = (rows * (2 * side - 1) + columns).reshape(side * side, side * side)
        return self.rel_pos_bias(index).permute(2, 0, 1)  # type: ignore[no-any-return]


class ChannelAttention(nn.Module):
    """Attention between the channels of each head, within a group of pixels."""

    def __init__(self, dim: int, grouping: Grouping) -> None:
        super().__init__()
        self.grouping = grouping
        self.temperature = nn.Parameter(torch.ones(_HEADS, 1, 1))
        self.qkv = conv1(dim, 3 * dim, bias=False)
        self.qkv_dwconv = conv3(3 * dim, 3 * dim, groups=3 * dim, bias=False)
        self.project_out = conv1(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        groups = self.grouping.split(self.qkv_dwconv(self.qkv(x)))
        batch, rows, columns, height, width, channels = groups.shape
        parts = groups.reshape(batch * rows * columns, height * width, 3, _HEADS, channels // 3 // _HEADS)
        query, key, value = parts.permute(2, 0, 3, 4, 1).unbind(0)  # (groups, heads, dim / heads, pixels)
        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
        mixed = (query @ key.transpose(-2, -1) * self.temperature).softmax(-1) @ value
        pixels = mixed.permute(0, 3, 1, 2).reshape(batch, rows, columns, height, width, channels // 3)
        y: Tensor = self.project_out(self.grouping.join(pixels))
        return y


class GatedMixer(nn.Module):
    """A channel mixer whose one half gates the other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project_in = conv1(dim, 2 * dim, bias=False)
        self.dwconv = conv3(2 * dim, 2 * dim, groups=2 * dim, bias=False)
        self.project_out = conv1(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        y: Tensor = self.project_out(functional.gelu(gate) * value)
        return y


class Skip(nn.Module):
    """``fn(x) + x``, or with a normalisation before it."""

    def __init__(self, fn: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        if norm is not None:
            self.norm = norm
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        if isinstance(self.fn, PlaceAttention):
            return self.fn(x, self.norm) + x  # type: ignore[no-any-return]
        y: Tensor = self.fn(self.norm(x) if hasattr(self, "norm") else x) + x
        return y


class OmniBlock(nn.Module):
    """Omni self-attention: over places and channels, first within windows, then over grids."""

    def __init__(self, dim: int, window_size: int) -> None:
        super().__init__()

        def mixer() -> Skip:
            return Skip(GatedMixer(dim), ChannelNorm(dim))

        layers: dict[str, nn.Module] = {"0": Skip(local_mixer(dim))}
        for first, spread in ((2, False), (8, True)):  # the indices between have no weights
            places = Grouping((window_size, -1) if spread else (-1, window_size), spread)
            channels = Grouping((-1, window_size), spread)
            layers[f"{first}"] = Skip(PlaceAttention(dim, places, window_size), nn.LayerNorm(dim))
            layers[f"{first + 2}"] = mixer()
            layers[f"{first + 3}"] = Skip(ChannelAttention(dim, channels), ChannelNorm(dim))
            layers[f"{first + 4}"] = mixer()
        self.layer = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        for layer in self.layer.values():
            x = layer(x)
        return x


class OmniGroup(nn.Module):
    """Omni blocks and a 1x1 convolution with a skip, and enhanced spatial attention."""

    def __init__(self, dim: int, blocks: int, window_size: int, bias: bool) -> None:
        super().__init__()
        layers = [OmniBlock(dim, window_size) for _ in range(blocks)]
        self.residual_layer = nn.Sequential(*layers, conv1(dim, dim, bias=bias))
        self.esa = ESA(dim, max(dim // 4, 16))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.esa(self.residual_layer(x) + x)
        return y


@peer(
    small={"num_feat": 16, "res_num": 1, "upsampling": 2},
    sizes={"OmniSR": {}},
    paper=Paper(
        "Wang, Chen, Ni, Liu, Liu",
        "Omni Aggregation Networks for Lightweight Image Super-Resolution",
        "CVPR 2023",
        "2304.10244",
    ),
    code=Code("Francis0625/Omni-SR", "Apache-2.0"),
    form=Form(smallest=9),
    scale_argument="upsampling",
    note="The authors' own weights are for values in [-1, 1]; those that others train are for [0, 1].",
)
class OmniSR(nn.Module):
    """Omni aggregation network.

    Args:
        num_in_ch: Channels of the input.
        num_out_ch: Channels of the output.
        num_feat: Feature channels, a multiple of 4.
        res_num: Number of groups.
        upsampling: Scale of super-resolution.
        bias: Whether the convolutions between the blocks have biases.
        block_num: Number of blocks in each group.
        ffn_bias: Has no effect, as in the authors' code.
        window_size: Side of the windows and of the grids.
        pe: Whether the attention has position biases: must be true.
        block_script_name: Name of the block's file in the authors' code.
        block_class_name: Name of the block's class in the authors' code.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size from 9x9, and fills the last window with zeros.
        halo: None: its attention sees the whole image.

    Raises:
        OptionError: ``pe`` is false, or ``num_feat`` is not a multiple of 4.
    """

    def __init__(
        self,
        num_in_ch: Positive = 3,
        num_out_ch: Positive = 3,
        num_feat: Positive = 64,
        res_num: Positive = 5,
        upsampling: Positive = 4,
        bias: bool = True,
        block_num: Positive = 1,
        ffn_bias: bool = True,
        window_size: Positive = 8,
        pe: bool = True,
        block_script_name: Literal["OSA"] = "OSA",
        block_class_name: Literal["OSA_Block"] = "OSA_Block",
    ) -> None:
        super().__init__()
        if not pe or num_feat % _HEADS:
            raise OptionError(f"OmniSR: pe ({pe}) must be true, and num_feat ({num_feat}) a multiple of {_HEADS}")
        self.scale, self.window, self.halo = upsampling, 1, None
        self.window_size = window_size
        self.residual_layer = nn.Sequential(
            *[OmniGroup(num_feat, block_num, window_size, bias) for _ in range(res_num)]
        )
        self.input = conv3(num_in_ch, num_feat, bias=bias)
        self.output = conv3(num_feat, num_feat, bias=bias)
        self.up = upsampler(num_feat, upsampling, num_out_ch)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped; h and w at least 9."""
        height, width = x.shape[2:]
        x = functional.pad(x, (0, -width % self.window_size, 0, -height % self.window_size))
        first = self.input(x)
        features = self.output(self.residual_layer(first)) + first  # (B, num_feat, h, w)
        image: Tensor = self.up(features)
        return image[:, :, : height * self.scale, : width * self.scale]

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        block = "residual_layer.0.residual_layer"
        bias = f"{block}.0.layer.2.fn.rel_pos_bias.weight"
        if not same_names(shapes, "input.weight", bias, "residual_layer.0.esa.conv1.weight", "up.0.weight"):
            return None
        num_feat, num_in_ch = shapes["input.weight"][:2]
        return {
            "num_in_ch": num_in_ch,
            "num_out_ch": num_in_ch,
            "num_feat": num_feat,
            "res_num": length(shapes, "residual_layer"),
            "upsampling": shuffle_scale(shapes["up.0.weight"][0], num_in_ch),
            "bias": "input.bias" in shapes,
            "block_num": length(shapes, block) - 1,
            "window_size": (math.isqrt(shapes[bias][0]) + 1) // 2,
        }
