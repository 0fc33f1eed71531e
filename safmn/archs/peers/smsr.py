"""SMSR: learns where and in which channels to compute, Wang et al., CVPR 2021 (arXiv 2006.09603)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.parts import conv1, conv3, same_names, upsampler
from safmn.archs.peers.rcan_parts import ChannelAttention, MeanShift
from safmn.archs.shapes import Shapes, shuffle_scale
from safmn.errors import DataError, OptionError
from safmn.value_types import Positive, PositiveFloat

_LAYERS = 4  # masked convolutions of a module
_MODULES = 5


class PartialConv(nn.Module):
    """A 3x3 convolution without bias that can leave input channels out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv3(dim, dim, bias=False).weight.detach())

    def forward(self, x: Tensor, channels: list[int] | None = None) -> Tensor:
        """Map the given channels of (B, dim, h, w), or all, to (B, dim, h, w)."""
        if channels is None or len(channels) == x.shape[1]:
            return functional.conv2d(x, self.weight, padding=1)
        return functional.conv2d(x[:, channels], self.weight[:, channels], padding=1)


class MaskedConvs(nn.Module):
    """Four convolutions whose sparse channels are computed only at the pixels that need it.

    A channel is dense or sparse in each layer. A sparse channel is 0 at pixels that the spatial mask leaves out. There,
    a dense channel is computed from the dense channels of the layer before only. The published code skips what is
    masked. Here everything is computed and then masked, with the same result.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ch_mask = nn.Parameter(torch.rand(1, dim, _LAYERS, 2))  # scores of dense and sparse
        self.body = nn.ModuleList([PartialConv(dim) for _ in range(_LAYERS)])
        self.collect = conv1(dim * _LAYERS, dim)
        self._sparse: list[list[bool]] = [[False] * dim] * _LAYERS

    def train(self, mode: bool = True) -> MaskedConvs:
        """Switch between training and evaluation, which reads the channels' masks."""
        super().train(mode)
        if not mode:
            self._read_masks()
        return self

    def _read_masks(self) -> None:
        """Remember which channels are sparse; a graph or a count of operations has no values to read."""
        if not (self.ch_mask.is_meta or torch.compiler.is_compiling()):
            self._sparse = (self.ch_mask[0, ..., 1] > self.ch_mask[0, ..., 0]).T.tolist()

    def forward(self, x: Tensor, needed: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape; ``needed`` (B, 1, h, w) is 1 where sparse channels are computed."""
        outputs = self._soft(x, needed) if self.training else self._hard(x, needed)
        joined: Tensor = self.collect(torch.cat(outputs, dim=1))
        return joined

    def _soft(self, x: Tensor, needed: Tensor) -> list[Tensor]:
        """Return the layers' results with the random, differentiable masks of training."""
        sparse = functional.gumbel_softmax(self.ch_mask, dim=3)[..., 1]  # (1, dim, layers)
        outputs: list[Tensor] = []
        for layer, conv in enumerate(self.body):
            share = sparse[:, :, layer, None, None]
            gate = 1 - share + share * needed
            if layer == 0:
                y = conv(x) * gate
            else:
                before = sparse[:, :, layer - 1, None, None]
                y = conv(outputs[-1] * (1 - before)) * gate + conv(outputs[-1] * before) * needed
            outputs.append(torch.relu(y))
        return outputs

    def _hard(self, x: Tensor, needed: Tensor) -> list[Tensor]:
        """Return the layers' results; each convolution is split by the kind of its input channels."""
        self._read_masks()
        outputs: list[Tensor] = []
        before = [False] * x.shape[1]
        features = x
        for layer, conv in enumerate(self.body):
            dense, sparse = ([i for i, kind in enumerate(before) if kind is which] for which in (False, True))
            y = conv(features, dense) * _gate(self._sparse[layer], needed) if dense else 0
            if sparse:
                y = y + conv(features, sparse) * needed
            features = torch.relu(y)  # type: ignore[arg-type]
            outputs.append(features)
            before = self._sparse[layer]
        return outputs


def _gate(sparse: list[bool], needed: Tensor) -> Tensor:
    """Return the factor of each channel: 1 if it is dense, ``needed`` if it is sparse."""
    share = torch.tensor(sparse, dtype=needed.dtype, device=needed.device)[:, None, None]
    return 1 - share + share * needed


class MaskModule(nn.Module):
    """A sparse mask module: finds the pixels to compute, computes, and adds its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = dim // 4
        self.spa_mask = nn.Sequential(
            conv3(dim, inner),
            nn.ReLU(),
            nn.AvgPool2d(2),
            conv3(inner, inner),
            nn.ReLU(),
            nn.ConvTranspose2d(inner, 2, 3, stride=2, padding=1, output_padding=1),
        )
        self.body = MaskedConvs(dim)
        self.ca = ChannelAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        scores = self.spa_mask(x)  # (B, 2, h, w)
        if self.training:
            needed = functional.gumbel_softmax(scores, dim=1)[:, 1:]
        else:
            needed = (scores[:, 1:] > scores[:, :1]).to(x.dtype)
        y: Tensor = self.ca(self.body(x, needed)) + x
        return y


@peer(
    small={"scale": 2, "n_feats": 16},
    sizes={"SMSR": {}},
    paper=Paper(
        "Wang, Dong, Wang, Ying, Lin, An, Guo",
        "Exploring Sparsity in Image Super-Resolution for Efficient Inference",
        "CVPR 2021",
        "2006.09603",
    ),
    code=Code("LongguangWang/SMSR", "none"),
    form=Form(largest=255.0, multiple=2),
    scale_argument="scale",
    note="Even sizes only. The published multiply-adds are those that its masks leave; all are counted here.",
)
class SMSR(nn.Module):
    """Sparse mask network, for images in [0, 255] with even sides.

    Published tables count what the masks leave over on the authors' images (132, 68 and 42 G multiply-adds at x2, x3
    and x4). Here everything is computed (223.8, 100.4 and 57.1 G). They leave out the scores of the channels, 2,560
    parameters. Training adds no loss for sparsity, so the masks leave out little unless the weights already do.

    Args:
        scale: Scale of super-resolution.
        n_feats: Feature channels, a multiple of 16.
        rgb_range: The value of white.
        n_colors: Channels of the image: 3.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 2: the sides of the image must be even.
        halo: None: its channel attention sees the whole image.
        form: see :class:`safmn.archs.peers.Form`.

    Raises:
        OptionError: ``n_colors`` is not 3, or ``n_feats`` is not a multiple of 16.
    """

    def __init__(
        self, scale: Positive = 4, n_feats: Positive = 64, rgb_range: PositiveFloat = 255, n_colors: Positive = 3
    ) -> None:
        super().__init__()
        if n_colors != 3 or n_feats % 16:
            raise OptionError(f"SMSR: n_colors ({n_colors}) must be 3, and n_feats ({n_feats}) a multiple of 16")
        self.form = Form(largest=float(rgb_range), multiple=2)
        self.scale, self.window, self.halo = scale, 2, None
        self.sub_mean = MeanShift(-1, rgb_range)
        self.collect = nn.Sequential(conv1(n_feats * _MODULES, n_feats), nn.ReLU(), conv3(n_feats, n_feats))
        self.add_mean = MeanShift(1, rgb_range)
        self.head = nn.Sequential(conv3(3, n_feats), nn.ReLU(), conv3(n_feats, n_feats))
        self.body = nn.Sequential(*[MaskModule(n_feats) for _ in range(_MODULES)])
        self.tail = upsampler(n_feats, scale)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 255], to (B, 3, h * scale, w * scale), unclamped; h and w are even.

        Raises:
            DataError: a side is odd.
        """
        _check_even(x)
        x = self.sub_mean(x)
        features = [self.head(x)]
        for module in self.body:
            features.append(module(features[-1]))
        joined = self.collect(torch.cat(features[1:], dim=1)) + features[0]  # (B, n_feats, h, w)
        enlarged = functional.interpolate(x, scale_factor=float(self.scale), mode="bicubic", align_corners=False)
        image: Tensor = self.add_mean(self.tail(joined) + enlarged)
        return image

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        if not same_names(
            shapes, "sub_mean.weight", "head.2.weight", "body.0.spa_mask.5.weight", "body.0.body.ch_mask"
        ):
            return None
        n_feats, n_colors = shapes["head.0.weight"][:2]
        return {"scale": shuffle_scale(shapes["tail.0.weight"][0]), "n_feats": n_feats, "n_colors": n_colors}


def _check_even(x: Tensor) -> None:
    height, width = x.shape[2:]
    if not torch.compiler.is_compiling() and (height % 2 or width % 2):
        raise DataError(f"SMSR takes images with even sides only; this one has {width}x{height} pixels")
