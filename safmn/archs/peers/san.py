"""SAN: second-order attention, Dai et al., CVPR 2019."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.parts import conv1, conv3, same_names
from safmn.archs.peers.rcan_parts import MeanShift, check_fixed, enlarger, scale_of, wide, without_autocast
from safmn.archs.shapes import Shapes, length
from safmn.value_types import Positive, PositiveFloat

_LARGEST = 1000  # sides of the part of an image from which the covariance is computed
_STEPS = 5  # of the Newton-Schulz iteration


class SecondOrderAttention(nn.Module):
    """Scale each channel by a function of the square root of the channels' covariance."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            conv1(dim, dim // reduction), nn.ReLU(), conv1(dim // reduction, dim), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        with without_autocast(x):
            root = square_root(covariance(wide(_middle(x))))  # (B, dim, dim)
        gate: Tensor = self.conv_du(root.mean(dim=1)[:, :, None, None].to(x.dtype))
        return x * gate


def _middle(x: Tensor) -> Tensor:
    """Return the middle of an image, at most 1000 pixels along each side."""
    for dim in (2, 3):
        side = x.shape[dim]
        if side > _LARGEST:
            x = x.narrow(dim, (side - _LARGEST) // 2, _LARGEST)
    return x


def covariance(x: Tensor) -> Tensor:
    """Return the covariance of the channels of (B, C, h, w) over all pixels: (B, C, C)."""
    flat = x.flatten(2)
    centred = flat - flat.mean(dim=2, keepdim=True)
    return centred @ centred.transpose(1, 2) / flat.shape[2]


def square_root(matrix: Tensor) -> Tensor:
    """Return approximate square roots of covariance matrices (B, C, C), by five Newton-Schulz steps."""
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    three = 3 * torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    normed = matrix / trace
    inverse = 0.5 * (three - normed)  # towards the inverse root
    root = normed @ inverse
    for _ in range(_STEPS - 2):
        change = 0.5 * (three - inverse @ root)
        root, inverse = root @ change, change @ inverse
    return 0.5 * (root @ (three - inverse @ root)) * trace.sqrt()


class Attention(nn.Module):
    """Embedded Gaussian attention from all pixels to the maxima of 2x2 pixels, and a skip."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.g = nn.Sequential(conv1(dim, inner), nn.MaxPool2d(2))
        self.W = conv1(inner, dim)
        self.theta = conv1(dim, inner)
        self.phi = nn.Sequential(conv1(dim, inner), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w), h and w at least 2, to the same shape."""
        parts = (part(x).flatten(2).transpose(1, 2)[:, None] for part in (self.theta, self.phi, self.g))
        query, key, value = parts  # (B, 1, pixels, inner): with a head, torch does not store all pairs of pixels
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        y: Tensor = self.W(mixed[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])) + x
        return y


class QuarterAttention(nn.Module):
    """:class:`Attention` inside each quarter of the image. The weights of ``soca`` are in the files, but not used."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.soca = SecondOrderAttention(dim, 8)
        self.non_local = Attention(dim, dim // 8)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        height, width = x.shape[2] // 2, x.shape[3] // 2
        rows = (x[:, :, :height], x[:, :, height:])
        quarters = ((row[..., :width], row[..., width:]) for row in rows)
        return torch.cat([torch.cat([self.non_local(part) for part in row], dim=3) for row in quarters], dim=2)


class Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_first = nn.Sequential(conv3(dim, dim), nn.ReLU(), conv3(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.conv_first(x) + x
        return y


class Group(nn.Module):
    """Blocks, second-order attention, a convolution, and a skip around them. ``gamma`` is not used."""

    def __init__(self, dim: int, blocks: int, reduction: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.rcab = nn.ModuleList([Block(dim) for _ in range(blocks)])
        self.soca = SecondOrderAttention(dim, reduction)
        self.conv_last = conv3(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y = x
        for block in self.rcab:
            y = block(y)
        y = self.conv_last(self.soca(y)) + x
        return y


@peer(
    small={"scale": 2, "n_resgroups": 2, "n_resblocks": 2, "n_feats": 16, "reduction": 4},
    sizes={"SAN": {}},
    paper=Paper(
        "Dai, Cai, Zhang, Xia, Zhang", "Second-Order Attention Network for Single Image Super-Resolution", "CVPR 2019"
    ),
    code=Code("daitao/SAN", "none"),
    form=Form(largest=255.0, smallest=4),
    scale_argument="scale",
    note="Tables leave its attention out.",
)
class SAN(nn.Module):
    """Second-order attention network, for images in [0, 255].

    Published tables leave out the attention between pixels and the covariances: 1620 and 937 G multiply-adds at x3 and
    x4, where 1652 and 948 G are counted here. The figures for x2 (15.86 M parameters, 3050 G) agree with no count: the
    network has 15.71 M, and its convolutions alone need 3604 G.

    Args:
        scale: Scale of super-resolution.
        n_resgroups: Number of groups.
        n_resblocks: Number of blocks in each group.
        n_feats: Feature channels, a multiple of 8.
        reduction: How many times fewer channels the attention has.
        rgb_range: The value of white.
        n_colors: Channels of the image: 3.
        res_scale: Must be 1: the network has no scaling of its residuals.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size from 4x4.
        halo: None: its attention sees the whole image.
        form: see :class:`safmn.archs.peers.Form`.

    Raises:
        OptionError: the scale is neither 3 nor a power of two, ``n_colors`` is not 3, or ``res_scale`` not 1.
    """

    def __init__(
        self,
        scale: Positive = 4,
        n_resgroups: Positive = 20,
        n_resblocks: Positive = 10,
        n_feats: Positive = 64,
        reduction: Positive = 16,
        rgb_range: PositiveFloat = 255,
        n_colors: Positive = 3,
        res_scale: PositiveFloat = 1,
    ) -> None:
        super().__init__()
        check_fixed("SAN", n_colors, res_scale)
        self.form = Form(largest=float(rgb_range), smallest=4)
        self.scale, self.window, self.halo = scale, 1, None
        self.gamma = nn.Parameter(torch.zeros(1))
        self.sub_mean = MeanShift(-1, rgb_range, frozen=False)  # the authors' code trains them
        self.RG = nn.ModuleList([Group(n_feats, n_resblocks, reduction) for _ in range(n_resgroups)])
        self.conv_last = conv3(n_feats, n_feats)  # in the files, but not used
        self.add_mean = MeanShift(1, rgb_range, frozen=False)
        self.non_local = QuarterAttention(n_feats)
        self.head = nn.Sequential(conv3(3, n_feats))
        self.tail = nn.Sequential(enlarger(n_feats, scale), conv3(n_feats, 3))

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 255], to (B, 3, h * scale, w * scale), unclamped."""
        first = self.head(self.sub_mean(x))  # (B, n_feats, h, w)
        y = attentive = self.non_local(first)
        for group in self.RG:
            y = group(y) + self.gamma * attentive
        image: Tensor = self.add_mean(self.tail(self.non_local(y) + first))
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        squeeze = "RG.0.soca.conv_du.0.weight"
        if not same_names(
            shapes, "head.0.weight", squeeze, "RG.0.rcab.0.conv_first.0.weight", "non_local.non_local.W.weight"
        ):
            return None
        n_feats, n_colors = shapes["head.0.weight"][:2]
        return {
            "scale": scale_of(shapes, "tail.0", n_feats),
            "n_resgroups": length(shapes, "RG"),
            "n_resblocks": length(shapes, "RG.0.rcab"),
            "n_feats": n_feats,
            "reduction": n_feats // shapes[squeeze][0],
            "n_colors": n_colors,
        }
