"""Rewrite a network for inference: the same function up to rounding, in the form that a back end runs fastest.

- Graph compilers (OpenVINO, ONNX Runtime) have no channels-first layer normalisation and add transpositions around
  theirs. Written as elementwise operations on planes, it fuses with its neighbours (:class:`PlaneNorm`).
- Nearest-neighbour enlargement commutes with a 1x1 convolution. In SAFM, the aggregation is such a convolution, and
  each of the four levels is the input of a quarter of it. Each quarter can therefore run at its level's own resolution.
  This cuts the cost of the convolution to a third (:class:`LevelwiseSAFM`).
- A network that computes entirely in bfloat16 loses 0.03 dB at x2, because the features also carry the image itself. It
  loses only 0.002 dB if just the blocks' dense convolutions are in bfloat16, and sums, norms and the convolutions from
  and to the image in float32.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.archs.blocks import SAFM, ChannelNorm
from safmn.inference.swin_graph import GraphSwinBlock, is_swin_block

IMAGE_CHANNELS = 12
"""A convolution with at most this many input channels reads the image, not features (3 * 2 * 2: unshuffled by 2)."""


class PlaneNorm(nn.Module):
    """:class:`safmn.archs.blocks.ChannelNorm` as elementwise operations and means over the channel axis."""

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach()[:, None, None], requires_grad=False)
        self.bias = nn.Parameter(norm.bias.detach()[:, None, None], requires_grad=False)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w) over its channels."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)  # (B, 1, h, w)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class LevelwiseSAFM(nn.Module):
    """:class:`safmn.archs.blocks.SAFM` with the aggregation at each level's own resolution, coarsest first.

    Height and width of the input must be multiples of the largest pooling factor. Each pooling factor must be a
    multiple of the one before.
    """

    def __init__(self, safm: SAFM) -> None:
        super().__init__()
        self.steps = [b // a for a, b in zip((1, *safm.factors), safm.factors, strict=False)]
        self.mfr = safm.mfr
        self.chunk = safm.mfr[0].in_channels
        parts = safm.aggr.weight.split(self.chunk, dim=1)
        self.aggr = nn.ModuleList(_conv1x1(part, safm.aggr.bias if i == 0 else None) for i, part in enumerate(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        pooled = [x]
        for step in self.steps:
            rest = pooled[-1][:, self.chunk :]  # the channels of this level and the coarser ones
            pooled.append(F.max_pool2d(rest, step))  # (B, dim * (levels left) / 4, h / factor, w / factor)
        gate: Tensor | None = None
        for level, part in reversed(list(enumerate(pooled))):
            own = self.aggr[level](self.mfr[level](part[:, : self.chunk]))  # (B, dim, h / factor, w / factor)
            if gate is not None:
                own = own + F.interpolate(gate, scale_factor=float(self.steps[level]), mode="nearest")
            gate = own
        assert gate is not None  # there is at least one level, the full resolution
        return F.gelu(gate) * x


class InHalf(nn.Module):
    """A network or layer that computes in half precision (torch sums in float32); input and output are float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's result for (B, C, h, w) as float32."""
        y: Tensor = self.module(x.to(self.dtype)).float()
        return y


def _conv1x1(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None, device="meta")
    state = {"weight": weight.detach().clone()} | ({} if bias is None else {"bias": bias.detach().clone()})
    conv.load_state_dict(state, assign=True)
    return conv.requires_grad_(False)


def _replace(network: nn.Module, rule: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Return ``network`` with each module replaced by the result of ``rule``, unless that is None; outermost first."""
    instead = rule(network)
    if instead is not None:
        return instead
    for name, child in network.named_children():
        setattr(network, name, _replace(child, rule))
    return network


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return an independent copy, in evaluation mode and without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def replica(network: nn.Module) -> nn.Module:
    """Return a copy that shares the weights, but no buffer or attribute that a forward could write to."""
    shared = {id(weight): weight for weight in network.parameters()}
    return copy.deepcopy(network, shared)  # type: ignore[arg-type]


def for_graph(network: nn.Module) -> nn.Module:
    """Return a copy with norms, modulation and Swin blocks rewritten: :class:`PlaneNorm`, :class:`LevelwiseSAFM`,
    :class:`safmn.inference.swin_graph.GraphSwinBlock`.

    The sides of its input must be multiples of the network's window.
    """

    def rule(module: nn.Module) -> nn.Module | None:
        if isinstance(module, ChannelNorm):
            return PlaneNorm(module)
        if is_swin_block(module):
            return GraphSwinBlock(module)
        return LevelwiseSAFM(module) if isinstance(module, SAFM) else None

    return _replace(frozen_copy(network), rule)


def for_trace(network: nn.Module) -> nn.Module:
    """Return a copy whose trace is right for every size and number of images: only Swin blocks are rewritten."""
    return _replace(frozen_copy(network), lambda module: GraphSwinBlock(module) if is_swin_block(module) else None)


def with_precision(network: nn.Module, precision: str) -> nn.Module:
    """Return a copy that computes in ``precision``, with float32 input and output.

    ``bf16``: dense convolutions from features to features are in bfloat16, the ends and everything else in float32.
    ``fp16``: the whole network is in float16, which has three more bits of precision than bfloat16.
    """
    network = frozen_copy(network)
    if precision == "fp32":
        return network
    if precision == "fp16":
        return InHalf(network, torch.float16)
    ends = _output_convolutions(network)

    def rule(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or module in ends:
            return None
        return None if module.in_channels <= IMAGE_CHANNELS else InHalf(module, torch.bfloat16)

    return _replace(network, rule)


def _output_convolutions(network: nn.Module) -> set[nn.Module]:
    """Return the convolutions whose output is the image: three channels, or the input of a pixel shuffle."""
    found: set[nn.Module] = {m for m in network.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 3}
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            children = list(module)
            found |= {a for a, b in itertools.pairwise(children) if isinstance(b, nn.PixelShuffle)}
    return found
