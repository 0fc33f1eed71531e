"""SeemoRe: mining experts, Zamfir, Wu, Mehta, Zhang and Timofte, ICML 2024 (arXiv 2402.03412)."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.blocks import ChannelNorm
from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.parts import RGB_MEAN, conv1, conv3, enlarged_to, minus, same_names, shifted, upsampler
from safmn.archs.shapes import Shapes, length, shuffle_scale
from safmn.value_types import Positive, PositiveFloat

_STEP = 4  # of the convolutions that gather context


class Striped(nn.Module):
    """Depthwise convolutions along the rows, then along the columns."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        side = size // 2
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim, (1, size), padding=(0, side), groups=dim),
            nn.Conv2d(dim, dim, (size, 1), padding=(side, 0), groups=dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.conv(x)
        return y


class GatedFeedForward(nn.Module):
    """Channel mixer in which one half gates the other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fn_1 = nn.Sequential(conv1(dim, 2 * dim), nn.GELU())
        self.fn_2 = nn.Sequential(conv1(dim, dim), nn.GELU())
        self.gate = conv3(dim, dim, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        a, b = self.fn_1(x).chunk(2, dim=1)  # (B, dim, h, w) each
        y: Tensor = self.fn_2(a * self.gate(b))
        return y


class GlobalExpert(nn.Module):
    """Spatial enhancement: features times a large striped convolution of others."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.proj = conv1(dim, dim)
        self.to_qv = nn.Sequential(conv1(dim, 2 * dim), nn.GELU())
        self.attn = Striped(dim, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        q, v = self.to_qv(x).chunk(2, dim=1)
        y: Tensor = self.proj(self.attn(q) * v)
        return y


class LowRank(nn.Module):
    """An expert: the product of two projections of low rank, projected back."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.conv_1 = conv1(dim, rank)
        self.conv_2 = conv1(dim, rank)
        self.conv_3 = conv1(rank, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map (B, dim, h, w) and a context of the same shape to that shape."""
        y: Tensor = self.conv_3(self.conv_2(context) * self.conv_1(x))
        return y


class _Router(nn.Module):
    """Weights of the experts from the mean of the features."""

    def __init__(self, dim: int, experts: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, experts, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, experts): the softmax, with zeros except for the largest."""
        weights = self.body(x).softmax(dim=1)  # (B, experts)
        chosen = functional.one_hot(weights.argmax(dim=1), weights.shape[1])
        return weights * chosen.to(weights.dtype)


def _may_branch(x: Tensor) -> bool:
    """Return whether the computation may depend on values: there are some, and no graph is being recorded."""
    recording = x.is_meta or torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not (recording or (x.is_cuda and torch.cuda.is_current_stream_capturing()))


class Experts(nn.Module):
    """A router and its experts. Each image gets the result of the one with the largest weight.

    For a single image only that one runs. For batches, in training and in a recorded graph all of them run.

    Attributes:
        only: index of the expert that runs for every image, whatever its weight, for counting; None: see above.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(LowRank(dim, 2 ** (index + 1)) for index in range(count))
        self.gate = _Router(dim, count)
        self.only: int | None = None

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map (B, dim, h, w) and a context of the same shape to that shape."""
        weights = self.gate(x)[:, :, None, None, None]  # (B, experts, 1, 1, 1)
        chosen = self.only
        if chosen is None and len(x) == 1 and not self.training and _may_branch(x):
            chosen = int(weights.argmax())
        if chosen is not None:
            return x + weights[:, chosen] * self.experts[chosen](x, context)
        y = x
        for index, expert in enumerate(self.experts):
            y = y + weights[:, index] * expert(x, context)
        return y


def _shuffled(x: Tensor) -> Tensor:
    """Return the order of the channels after a shuffle in two groups, which leaves no sizes in an exported graph."""
    return torch.arange(x.shape[1], device=x.device).reshape(2, -1).t().flatten()


class LocalExpert(nn.Module):
    """Rank modulation: experts that multiply local features with a context gathered at a 16th of the size."""

    def __init__(self, dim: int, experts: int, use_shuffle: bool, recursive: int) -> None:
        super().__init__()
        self.use_shuffle, self.recursive = use_shuffle, recursive
        self.conv_1 = nn.Sequential(conv3(dim, dim), nn.GELU(), conv1(dim, 2 * dim))
        self.agg_conv = nn.Sequential(nn.Conv2d(dim, dim, _STEP, _STEP, groups=dim), nn.GELU())
        self.conv = nn.Sequential(conv3(dim, dim, groups=dim), conv1(dim, dim))
        self.conv_2 = nn.Sequential(Striped(dim, 3), nn.GELU())
        self.moe_layer = Experts(dim, experts)
        self.proj = conv1(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, dim, h, w), h and w at least 16, to the same shape."""
        both = self.conv_1(features)
        if self.use_shuffle:
            both = both.index_select(1, _shuffled(both))
        x, context = both.chunk(2, dim=1)
        gathered = context
        for _ in range(self.recursive):
            gathered = self.agg_conv(gathered)  # (B, dim, h / 4, w / 4), then a 16th
        context = context + enlarged_to(self.conv(gathered), context)
        y: Tensor = self.proj(self.moe_layer(self.conv_2(x), context))
        return y


class Block(nn.Module):
    """A part and a feed-forward, each after a norm and with a skip."""

    def __init__(self, dim: int, part: nn.Module) -> None:
        super().__init__()
        self.norm_1 = ChannelNorm(dim)
        self.block = part
        self.norm_2 = ChannelNorm(dim)
        self.ffn = GatedFeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.block(self.norm_1(x)) + x
        x = self.ffn(self.norm_2(x)) + x
        return x


class Group(nn.Module):
    """Rank modulation, then spatial enhancement."""

    def __init__(self, local_part: nn.Module, global_part: nn.Module, dim: int) -> None:
        super().__init__()
        self.local_block = Block(dim, local_part)
        self.global_block = Block(dim, global_part)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = self.global_block(self.local_block(x))
        return y


@peer(
    small={"embedding_dim": 16, "num_layers": 1, "scale": 2},
    sizes={"SeemoRe-T": {}},
    paper=Paper(
        "Zamfir, Wu, Mehta, Zhang, Timofte",
        "See More Details: Efficient Image Super-Resolution by Experts Mining",
        "ICML 2024",
        "2402.03412",
    ),
    code=Code("eduardzamfir/seemoredetails", "Apache-2.0"),
    form=Form(smallest=_STEP**2),
    scale_argument="scale",
    note="One of three experts runs for each image; the count is for the one with the most work.",
)
class SeemoRe(nn.Module):
    """See-more network: experts of several ranks, chosen for each image.

    Args:
        scale: Scale of super-resolution.
        in_chans: Channels of the image.
        num_experts: Experts of each block, of the ranks 2, 4, 8, ...
        img_range: Factor on the image after the mean is subtracted.
        num_layers: Number of groups.
        embedding_dim: Feature channels.
        use_shuffle: Whether channels are shuffled in two groups before they are split.
        lr_space: How the ranks grow; only ``exp`` was published for this size.
        topk: Experts that are added; only 1 was published.
        recursive: How often the context is reduced by 4.
        global_kernel_size: Length of the striped convolutions, an odd number.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the sides need not be multiples of a number.
        halo: None: the router sees the whole image.
    """

    def __init__(
        self,
        scale: Positive = 4,
        in_chans: Literal[3] = 3,
        num_experts: Positive = 3,
        img_range: PositiveFloat = 1.0,
        num_layers: Positive = 6,
        embedding_dim: Positive = 36,
        use_shuffle: bool = True,
        lr_space: Literal["exp"] = "exp",
        topk: Literal[1] = 1,
        recursive: Positive = 2,
        global_kernel_size: Positive = 11,
    ) -> None:
        super().__init__()
        self.scale, self.window, self.halo = scale, 1, None
        self.form = Form(smallest=_STEP**recursive)
        self.img_range = img_range
        dim = embedding_dim
        self.conv_1 = conv3(in_chans, dim)
        self.body = nn.Sequential(
            *(
                Group(LocalExpert(dim, num_experts, use_shuffle, recursive), GlobalExpert(dim, global_kernel_size), dim)
                for _ in range(num_layers)
            )
        )
        self.norm = ChannelNorm(dim)
        self.conv_2 = conv3(dim, dim)
        self.upsampler = upsampler(dim, scale, in_chans)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped; sides of at least 16."""
        features = self.conv_1(shifted(x, minus(RGB_MEAN)) * self.img_range)
        image = self.upsampler(self.conv_2(self.norm(self.body(features))) + features)
        return shifted(image / self.img_range, RGB_MEAN)

    def counted(self) -> SeemoRe:
        """Return the network whose operations are counted: in each block the expert with the most work runs."""
        twin = copy.deepcopy(self)
        for module in twin.modules():
            if isinstance(module, Experts):
                module.only = len(module.experts) - 1
        return twin

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        experts, stripe = "body.0.local_block.block.moe_layer.experts", "body.0.global_block.block.attn.conv.0.weight"
        if not same_names(shapes, "conv_1.weight", f"{experts}.0.conv_1.weight", stripe, "upsampler.0.weight"):
            return None
        dim, channels = shapes["conv_1.weight"][:2]
        return {
            "scale": shuffle_scale(shapes["upsampler.0.weight"][0], channels),
            "in_chans": channels,
            "num_experts": length(shapes, experts),
            "num_layers": length(shapes, "body"),
            "embedding_dim": dim,
            "global_kernel_size": shapes[stripe][-1],
        }
