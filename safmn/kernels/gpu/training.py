"""SAFMN's forward pass in the form that is fastest on a GPU, for training.

It differs from the network's own operations in three ways:

- images are (B, h, w, C) in memory throughout;
- the input and output of convolutions are padded to a multiple of eight channels, because a GPU's matrix units process
  bfloat16 in such multiples, and SAFMN's 36 is not one;
- everything between two dense convolutions is fused, including depthwise convolutions and pooling. SAFMN's own kernels
  do this (:mod:`safmn.kernels.gpu.blocks`). If the network is too wide for them or Triton is missing, ``torch.compile``
  does it, once for all blocks.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.errors import first_line
from safmn.kernels.checks import check_network, check_sides, relative_error
from safmn.kernels.gpu.parameters import aligned, stacked

logger = logging.getLogger(__name__)

_LARGEST_ERROR = 0.2  # of correct kernels, in bfloat16 and for random weights, with a margin
_WIDEST = 64  # channels that the kernels support: wider tiles do not fit into registers


Fusion = Literal["kernels", "compile", "none"]


class _Block(NamedTuple):
    """The parameters of a block. Those of convolutions are padded and have the type of the arithmetic."""

    norm1: tuple[Tensor, Tensor]  # (dim,) each
    norm2: tuple[Tensor, Tensor]
    levels: list[tuple[Tensor, Tensor]]  # (dim / 4, 3, 3), (dim / 4,)
    aggr: tuple[Tensor, Tensor]  # (padded, padded), (padded,)
    mix: tuple[Tensor, Tensor]  # (hidden, padded, 3, 3), (hidden,)
    back: tuple[Tensor, Tensor]  # (padded, hidden), (padded,)


def _pad(tensor: Tensor, *sizes: int) -> Tensor:
    """Pad the first dimensions of ``tensor`` with zeros at the end, up to ``sizes``."""
    missing = [size - have for size, have in zip(sizes, tensor.shape, strict=False)]
    rest = tensor.dim() - len(missing)
    return F.pad(tensor, [0, 0] * rest + [side for amount in reversed(missing) for side in (0, amount)])


def _normalise(x: Tensor, norm: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], *norm, 1e-6).to(dtype)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute a depthwise 3x3 convolution as a sum of shifted images, (B, h, w, C) to the same shape in float32."""
    _, height, width, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1)).float()
    result = bias.expand(x.shape)
    for row in range(3):
        for column in range(3):
            shifted = padded[:, row : row + height, column : column + width]
            result = result + shifted * weight[:, row, column]
    return result


def _pool(x: Tensor, factor: int) -> Tensor:
    """Max-pool (B, h, w, C) by ``factor``, which divides both sides."""
    batch, height, width, channels = x.shape
    return x.view(batch, height // factor, factor, width // factor, factor, channels).amax((2, 4))


def _enlarge(x: Tensor, factor: int) -> Tensor:
    """Enlarge (B, h, w, C) to (B, h * factor, w * factor, C) by nearest neighbour."""
    batch, height, width, channels = x.shape
    spread = x[:, :, None, :, None].expand(batch, height, factor, width, factor, channels)
    return spread.reshape(batch, height * factor, width * factor, channels)


def _block(x: Tensor, features: Tensor, parameters: _Block, factors: tuple[int, ...]) -> Tensor:
    """Compute the block ``FMM``: (B, h, w, dim) in float32 to the same.

    ``features``, the output of the first norm, is an input, because that norm is compiled separately. The gradient of
    pooling compares each value with the maximum, so both must read the same values from memory. A fused norm would be
    computed twice with different rounding, and then possibly no value would equal the maximum.
    """
    dim, (weight, bias) = x.shape[-1], parameters.aggr
    dtype = weight.dtype
    levels = []
    for part, factor, conv in zip(features.chunk(len(factors), dim=-1), factors, parameters.levels, strict=True):
        pooled = _pool(part, factor) if factor > 1 else part
        level = _depthwise(pooled, *conv).to(dtype)
        levels.append(_enlarge(level, factor) if factor > 1 else level)
    padding = x.new_zeros((), dtype=dtype).expand(*x.shape[:-1], weight.shape[1] - dim)
    gate = F.linear(torch.cat([*levels, padding], dim=-1), weight, bias)[..., :dim]
    x = x + F.gelu(gate.float()) * features.float()
    features = F.pad(_normalise(x, parameters.norm2, dtype), (0, parameters.mix[0].shape[1] - dim))
    mixed = F.conv2d(features.permute(0, 3, 1, 2), *parameters.mix, padding=1).permute(0, 2, 3, 1)
    return x + F.linear(F.gelu(mixed.float()).to(dtype), *parameters.back)[..., :dim].float()


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Inductor's layout optimisation would take (B, h, w, C) for (B, C, h, w) and put the rows innermost.
    options: dict[str, Any] = {"layout_optimization": False}
    return torch.compile(function, dynamic=False, fullgraph=True, options=options)


def _possible_fusion(network: Any, dtype: torch.dtype) -> Fusion:
    """Return ``kernels`` if SAFMN's own kernels run and are accurate, otherwise ``compile``; log the reason."""
    reason = ""
    if network.to_feat.out_channels > _WIDEST:
        reason = f"the network is wider than {_WIDEST} channels"
    elif importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    else:
        try:
            if (error := kernel_error(network, dtype)) > _LARGEST_ERROR:
                reason = f"SAFMN's kernels are {error:.1%} off on this machine; please report it"
        except Exception as error:  # a compiler or a driver may raise any exception
            reason = f"SAFMN's kernels cannot run on this machine: {type(error).__name__}: {first_line(error)}"
    if reason:
        logger.warning("train.kernels: native uses torch.compile, which is slower: %s", reason)
    return "compile" if reason else "kernels"


def kernel_error(network: nn.Module, dtype: torch.dtype) -> float:
    """Return the kernels' relative error (of norms) on random images, the larger one of output and gradients."""
    network = copy.deepcopy(network).requires_grad_(True)  # a teacher's parameters have no gradients
    forms = [GPUTrainedSAFMN(network, dtype, fusion=fusion) for fusion in ("none", "kernels")]
    return relative_error(forms[0], forms[1], list(network.parameters()))


class GPUTrainedSAFMN(nn.Module):
    """SAFMN in the form that this module describes. It shares the parameters of ``network``.

    The residual stream of features stays float32. So do the first and the last convolution (TF32 if that is allowed),
    because an image in bfloat16 has only 8 bits. If several pixels of a window equal its maximum, they share the
    gradient (elsewhere in torch the first one gets all of it).

    Args:
        network: a SAFMN.
        dtype: type of the arithmetic within the blocks.
        fusion: ``kernels`` (SAFMN's own), ``compile`` (by torch) or ``none`` (the arithmetic of ``compile``, for
            tests). None: ``kernels`` if possible, otherwise ``compile``.

    Raises:
        OptionError: ``network`` is not SAFMN.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32, *, fusion: Fusion | None = None) -> None:
        super().__init__()
        check_network(network)
        self.network = network
        self.dtype = dtype
        self.fusion = fusion or _possible_fusion(network, dtype)
        self._normalise = _compiled(_normalise) if self.fusion == "compile" else _normalise
        self._run_block = _compiled(_block) if self.fusion == "compile" else _block

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, h, w), float32, h and w multiples of 8, to (B, 3, h * scale, w * scale), float32."""
        network: Any = self.network
        check_sides(images)
        with torch.autocast(images.device.type, enabled=False):
            shallow = self._first(images).permute(0, 2, 3, 1)  # (B, h, w, dim)
            deep = self._by_kernels(shallow) if self.fusion == "kernels" else self._by_compiler(shallow)
            image: Tensor = network.to_img((deep + shallow).permute(0, 3, 1, 2))
            return image

    def _by_kernels(self, x: Tensor) -> Tensor:
        from safmn.kernels.gpu import blocks as gpu_blocks

        return gpu_blocks.run_blocks(x, stacked(self.network), self.dtype)

    def _by_compiler(self, x: Tensor) -> Tensor:
        network: Any = self.network
        factors = (1, *network.feats[0].safm.factors)
        for parameters in self._prepared():
            x = self._run_block(x, self._normalise(x, parameters.norm1, self.dtype), parameters, factors)
        return x

    def _first(self, images: Tensor) -> Tensor:
        conv: Any = self.network.to_feat
        images = F.pad(images.float(), (0, 0, 0, 0, 0, 1)).contiguous(memory_format=torch.channels_last)
        weight = F.pad(conv.weight, (0, 0, 0, 0, 0, 1)).contiguous(memory_format=torch.channels_last)
        return F.conv2d(images, weight, conv.bias, padding=1).contiguous(memory_format=torch.channels_last)

    def _prepared(self) -> list[_Block]:
        """Return the parameters of each block, padded and converted."""
        network: Any = self.network
        own, blocks = stacked(network), len(network.feats)
        width = aligned(own.norm1.shape[1])

        def padded(tensor: Tensor, *sizes: int) -> tuple[Tensor, ...]:
            return _pad(tensor, blocks, *sizes).to(self.dtype).unbind(0)

        levels = len(network.feats[0].safm.mfr)
        depthwise = own.depthwise.unflatten(2, (3, 3)).chunk(levels, dim=1)  # (blocks, dim / 4, 3, 3) each
        depthwise_bias = own.depthwise_bias.chunk(levels, dim=1)
        norms = zip(own.norm1, own.norm1_bias, own.norm2, own.norm2_bias, strict=True)
        matrices = zip(
            padded(own.aggr, width, width),
            padded(own.aggr_bias, width),
            padded(own.mix, own.mix.shape[1], width),
            padded(own.mix_bias, own.mix.shape[1]),
            padded(own.back, width),
            padded(own.back_bias, width),
            strict=True,
        )
        return [
            _Block(
                norm1=(gain1, bias1),
                norm2=(gain2, bias2),
                levels=[(weight[number], bias[number]) for weight, bias in zip(depthwise, depthwise_bias, strict=True)],
                aggr=(aggr, aggr_bias),
                mix=(mix, mix_bias),
                back=(back, back_bias),
            )
            for number, ((gain1, bias1, gain2, bias2), (aggr, aggr_bias, mix, mix_bias, back, back_bias)) in enumerate(
                zip(norms, matrices, strict=True)
            )
        ]
