"""HiT-SIR: windows that grow from layer to layer, Zhang et al., ECCV 2024 (arXiv 2407.05878)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.blocks import mirrored
from safmn.archs.peers.declaration import Code, Paper, peer
from safmn.archs.peers.parts import RGB_MEAN, conv1, conv3, minus, same_names, shifted
from safmn.archs.peers.parts import upsampler as to_image
from safmn.archs.shapes import Shapes, ffn_scale, length, shuffle_scale
from safmn.errors import OptionError
from safmn.value_types import Positive, PositiveFloat

Side = int
"""Pixels along each side of a window."""


class DualFeatures(nn.Module):
    """Features from neighbours times features from the pixel itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = dim // 5
        self.conv = nn.Sequential(
            conv1(dim, inner), nn.LeakyReLU(0.2), conv3(inner, inner), nn.LeakyReLU(0.2), conv1(inner, dim)
        )
        self.linear = conv1(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, h, w, dim) to the same shape."""
        planes = x.permute(0, 3, 1, 2)
        y: Tensor = self.conv(planes) * self.linear(planes)
        return y.permute(0, 2, 3, 1)


class PositionBias(nn.Module):
    """A small perceptron from an offset in pixels to a bias for each head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.pos_proj = nn.Linear(2, dim)
        self.pos1, self.pos2, self.pos3 = (
            nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, outward)) for outward in (dim, dim, heads)
        )

    def forward(self, offsets: Tensor) -> Tensor:
        """Map offsets (n, 2) to biases (n, heads)."""
        y: Tensor = self.pos3(self.pos2(self.pos1(self.pos_proj(offsets))))
        return y


class Correlation(nn.Module):
    """Correlates pixels with the cells of their window, and channels with channels.

    A window has at most ``base`` x ``base`` cells. The cost therefore grows with the number of pixels only.
    """

    def __init__(self, dim: int, heads: int, side: Side, base: Side) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.cells = min(side, base)  # along each side
        self.qv = DualFeatures(dim)
        self.proj = nn.Linear(dim, dim)
        self.spatial_linear = nn.Linear((side // self.cells) ** 2, 1)
        self.pos = PositionBias(dim // 4 // 4, heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, h, w, dim), h and w multiples of ``side``, to the same shape."""
        batch, height, width, dim = x.shape
        side = self.side
        rows, columns = height // side, width // side
        windows = self.qv(x).reshape(batch, rows, side, columns, side, dim).transpose(2, 3)
        query, value = windows.reshape(-1, side * side, dim).chunk(2, dim=2)  # (windows, pixels, dim / 2)
        both = torch.cat([self._over_places(query, value), self._over_channels(query, value)], dim=2)
        whole = both.reshape(batch, rows, columns, side, side, dim).transpose(2, 3)
        y: Tensor = self.proj(whole.reshape(batch, height, width, dim))
        return y

    def _over_places(self, query: Tensor, value: Tensor) -> Tensor:
        heads, cells, within = self.heads, self.cells, self.side // self.cells
        each = query.shape[2] // heads
        query = query.reshape(-1, self.side**2, heads, each).transpose(1, 2)  # (windows, heads, pixels, each)
        places = value.reshape(-1, cells, within, cells, within, heads, each).permute(0, 5, 1, 3, 6, 2, 4)
        joined = self.spatial_linear(places.reshape(-1, heads, cells**2, each, within**2))[..., 0]
        scores = query @ joined.transpose(2, 3) / each + self._bias()  # (windows, heads, pixels, cells ** 2)
        mixed = (scores @ joined).transpose(1, 2)  # (windows, pixels, heads, each)
        return mixed.reshape(-1, self.side**2, heads * each)

    @staticmethod
    def _over_channels(query: Tensor, value: Tensor) -> Tensor:
        scores = query.transpose(1, 2) @ value / query.shape[1]  # (windows, dim / 2, dim / 2)
        return (scores @ value.transpose(1, 2)).transpose(1, 2)

    def _bias(self) -> Tensor:
        """Return the bias of each pixel and cell, (heads, pixels, cells): the mean over the cell's pixels."""
        side, within = self.side, self.side // self.cells
        weight = self.pos.pos_proj.weight
        steps = torch.arange(1 - side, side, device=weight.device)
        offsets = torch.cartesian_prod(steps, steps).to(weight.dtype)
        table = self.pos(offsets).T.reshape(1, self.heads, 2 * side - 1, 2 * side - 1)
        means = functional.avg_pool2d(table, within, stride=1)[0] if within > 1 else table[0]  # (heads, n, n)
        pixels = torch.arange(side, device=weight.device)[:, None]
        starts = torch.arange(self.cells, device=weight.device) * within
        index = pixels - starts - within + side  # (side, cells)
        bias = means[:, index[:, None, :, None], index[None, :, None, :]]  # (heads, side, side, cells, cells)
        return bias.flatten(3, 4).flatten(1, 2)


class Layer(nn.Module):
    """Correlation inside windows, then a channel mixer, each normalised behind and with a skip."""

    def __init__(self, dim: int, heads: int, side: Side, base: Side, expansion: float) -> None:
        super().__init__()
        self.side = side
        self.norm1 = nn.LayerNorm(dim)
        self.correlation = Correlation(dim, heads, side, base)
        self.norm2 = nn.LayerNorm(dim)
        hidden = int(dim * expansion)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, h, w, dim) to the same shape. The image is mirrored below and on the right to fill the windows."""
        height, width = x.shape[1:3]
        padded = mirrored(mirrored(x, 1, self.side), 2, self.side)
        x = x + self.norm1(self.correlation(padded)[:, :height, :width])
        y: Tensor = x + self.norm2(self.mlp["fc2"](functional.gelu(self.mlp["fc1"](x))))
        return y


class Group(nn.Module):
    """Layers with growing windows, a convolution, and a skip around them."""

    def __init__(self, layers: Sequence[nn.Module], dim: int) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict({"blocks": nn.Sequential(*layers)})
        self.conv = conv3(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, h, w, dim) to the same shape."""
        y: Tensor = self.residual_group["blocks"](x)
        y = self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y + x


@peer(
    small={"upscale": 2, "depths": (3,), "num_heads": (2,), "embed_dim": 20, "hier_win_ratios": (0.5, 1, 2)},
    sizes={"HiT-SIR": {}},
    paper=Paper(
        "Zhang, Zhang, Yu",
        "HiT-SR: Hierarchical Transformer for Efficient Image Super-Resolution",
        "ECCV 2024",
        "2407.05878",
    ),
    code=Code("XiangZ-0/HiT-SR", "Apache-2.0"),
)
class HiT_SIR(nn.Module):
    """Hierarchical transformer in SwinIR's frame.

    Args:
        upscale: Scale of super-resolution.
        in_chans: Channels of the image: 3.
        img_size: Has no effect, as in the authors' code: any size works.
        base_win_size: Height and width of the window that the ratios refer to; they are equal.
        img_range: Factor on the image after the mean is subtracted.
        depths: Number of layers in each group.
        embed_dim: Feature channels.
        num_heads: Heads of the correlation in each group.
        expansion_factor: Width of the channel mixers, relative to ``embed_dim``.
        resi_connection: The convolution at the end of a group.
        hier_win_ratios: Sides of the windows in the layers of a group, relative to the base window.
        upsampler: How the image is enlarged.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: None: windows of up to 64 pixels in 24 layers reach across most images.

    Raises:
        OptionError: the lengths of the lists, or the channels and the numbers of heads, do not agree.
    """

    def __init__(
        self,
        upscale: Positive = 4,
        in_chans: Positive = 3,
        img_size: Positive = 64,
        base_win_size: tuple[Positive, Positive] = (8, 8),
        img_range: PositiveFloat = 1.0,
        depths: tuple[Positive, ...] = (6, 6, 6, 6),
        embed_dim: Positive = 60,
        num_heads: tuple[Positive, ...] = (6, 6, 6, 6),
        expansion_factor: PositiveFloat = 2,
        resi_connection: Literal["1conv"] = "1conv",
        hier_win_ratios: tuple[PositiveFloat, ...] = (0.5, 1, 2, 4, 6, 8),
        upsampler: Literal["pixelshuffledirect"] = "pixelshuffledirect",
    ) -> None:
        super().__init__()
        self.scale, self.window, self.halo = upscale, 1, None
        self.img_range = img_range
        base = base_win_size[0]
        sides = [int(base * ratio) for ratio in hier_win_ratios]
        _check(base_win_size, sides, depths, num_heads, embed_dim, in_chans)
        self.conv_first = conv3(in_chans, embed_dim)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed_dim)})
        groups = []
        for heads in num_heads:
            layers = [Layer(embed_dim, heads, side, base, expansion_factor) for side in sides]
            groups.append(Group(layers, embed_dim))
        self.layers = nn.Sequential(*groups)
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = conv3(embed_dim, embed_dim)
        self.upsample = to_image(embed_dim, upscale, in_chans)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped."""
        first = self.conv_first(shifted(x, minus(RGB_MEAN)) * self.img_range)  # (B, embed_dim, h, w)
        features = self.layers(self.patch_embed["norm"](first.permute(0, 2, 3, 1)))  # (B, h, w, embed_dim)
        features = self.conv_after_body(self.norm(features).permute(0, 3, 1, 2)) + first
        image: Tensor = self.upsample(features) / self.img_range
        return shifted(image, RGB_MEAN)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's.

        The windows follow from the shapes if the first is half as large as the base window and the second as large as
        it, as in the published networks.
        """
        block = "layers.0.residual_group.blocks.{}.correlation.spatial_linear.weight"
        if not same_names(shapes, "conv_first.weight", block.format(0), "conv_after_body.weight", "upsample.0.weight"):
            return None
        embed_dim, in_chans = shapes["conv_first.weight"][:2]
        groups = length(shapes, "layers")
        depth = length(shapes, "layers.0.residual_group.blocks")
        ratios = [math.isqrt(shapes[block.format(index)][1]) for index in range(depth)]
        heads = "layers.{}.residual_group.blocks.0.correlation.pos.pos3.2.weight"
        return {
            "upscale": shuffle_scale(shapes["upsample.0.weight"][0], in_chans),
            "in_chans": in_chans,
            "depths": (depth,) * groups,
            "embed_dim": embed_dim,
            "num_heads": tuple(shapes[heads.format(group)][0] for group in range(groups)),
            "expansion_factor": ffn_scale(embed_dim, shapes["layers.0.residual_group.blocks.0.mlp.fc1.weight"][0]),
            "hier_win_ratios": (0.5, *ratios[1:]),
        }


def _check(
    base: Sequence[int], sides: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], dim: int, in_chans: int
) -> None:
    if base[0] != base[1] or in_chans != 3:
        raise OptionError(f"HiT_SIR: in_chans ({in_chans}) must be 3, and base_win_size ({base[0]}, {base[1]}) square")
    if len(depths) != len(num_heads) or any(depth != len(sides) for depth in depths):
        raise OptionError("HiT_SIR: depths and num_heads must be equally long, and every depth the number of ratios")
    if any(dim % (2 * heads) for heads in num_heads) or dim < 16:
        raise OptionError(f"HiT_SIR: embed_dim ({dim}) must be at least 16 and a multiple of twice each of num_heads")
    if any(side < 1 or (side > base[0] and side % base[0]) for side in sides):
        raise OptionError(f"HiT_SIR: windows of {list(sides)} must be at most {base[0]} or multiples of it")
