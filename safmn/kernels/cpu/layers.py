"""The layers of a network, packed for the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safmn.archs.blocks import CCM, SAFM, ChannelNorm
from safmn.kernels.cpu.inference import Kernels, workspace

# Winograd's F(4, 3) for the points 0, -1, 1, 1/2, -2 and infinity: the transform of a filter.
_FILTER = torch.tensor(
    [
        [1, 0, 0],
        [-1 / 3, 1 / 3, -1 / 3],
        [1 / 3, 1 / 3, 1 / 3],
        [-16 / 15, -8 / 15, -4 / 15],
        [1 / 15, -2 / 15, 4 / 15],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)


class FeatureMaps:
    """The size of the maps in one call, and the memory for them."""

    def __init__(self, kernels: Kernels, height: int, width: int) -> None:
        self.kernels = kernels
        self.height = height
        self.width = width
        self._floats = height * kernels.line(width)  # of one channel

    def map(self, name: str, channels: int) -> Tensor:
        """Return uninitialised memory for a map. The next map of the same name uses the same memory."""
        return workspace().get(name, channels * self._floats)

    def read(self, image: Tensor, name: str) -> Tensor:
        """Convert an image (C, h, w) to a map."""
        channels = image.shape[0]
        to = self.map(name, channels)
        image = image if image.stride(2) == 1 else image.contiguous()
        self.kernels.call("to_map", image, to, channels, self.height, self.width, *image.stride()[:2])
        return to

    def write(self, source: Tensor, channels: int, scale: int = 1) -> Tensor:
        """Convert a map of ``channels * scale**2`` channels to (channels, h * scale, w * scale) by pixel shuffle."""
        image = torch.empty(channels, self.height * scale, self.width * scale, dtype=torch.float32)
        total = channels * scale**2
        self.kernels.call("from_map", source, image, None, total, 0, channels, self.height, self.width, scale)
        return image


class Convolution:
    """A 3x3 convolution with zero padding.

    Args:
        conv: the convolution.
        kernels: the kernels that run it.
        half: whether the factors of the products are bfloat16.
    """

    def __init__(self, conv: nn.Conv2d, kernels: Kernels, *, half: bool) -> None:
        self.out_channels, self.in_channels = conv.weight.shape[:2]
        self.half = half
        self.weights = packed(winograd_taps(conv.weight), kernels.block_size, half)
        self.bias = _bias(conv)

    def __call__(self, frame: FeatureMaps, source: Tensor, to: Tensor, add: Tensor | None = None) -> Tensor:
        """Compute ``to = conv(source) + add``. ``to`` may be ``add``, but not ``source``."""
        size = (self.in_channels, self.out_channels, frame.height, frame.width)
        frame.kernels.call("conv", source, to, add, *size, self.weights, self.bias, self.half)
        return to

    def to_image(self, frame: FeatureMaps, source: Tensor, scale: int = 1) -> Tensor:
        """Return ``conv(source)`` as (out_channels / scale**2, h * scale, w * scale) by pixel shuffle."""
        sizes = (self.in_channels, 0, self.in_channels, self.out_channels, frame.height, frame.width, scale)
        return to_image(frame.kernels, source, None, sizes, self.weights, self.bias, half=self.half)


def to_image(
    kernels: Kernels,
    source: Tensor,
    added: Tensor | None,
    sizes: Sequence[int],
    weights: Tensor,
    bias: Tensor,
    *,
    half: bool = False,
) -> Tensor:
    """Convolve channels of a map by 3x3, and return the result as an image by pixel shuffle.

    Args:
        kernels: the kernels.
        source: a map.
        added: a map of the image, which is enlarged bilinearly and added; None for nothing.
        sizes: the map's channels, the first one to convolve, their number, the results', height, width and scale.
        weights: packed.
        bias: (results,).
        half: whether the weights are bfloat16.
    """
    *_, outputs, height, width, scale = sizes
    image = torch.empty(outputs // scale**2, height * scale, width * scale, dtype=torch.float32)
    kernels.call("conv_to_image", source, image, added, *sizes, weights, bias, half)
    return image


class Block:
    """A feature mixing module or one half of it: ``x + safm(norm1(x))``, then ``x + ccm(norm2(x))``.

    Args:
        safm: the modulation; None for the second half only.
        ccm: the channel mixer; None for the first half only.
        kernels: the kernels that run it.
        norm1: the first half's normalisation; None if it has none.
        norm2: the second half's normalisation; None if it has none.
        half: whether the channel mixer's factors are bfloat16.

    Attributes:
        channels: channels of the input and the output.
    """

    def __init__(
        self,
        safm: SAFM | None,
        ccm: CCM | None,
        kernels: Kernels,
        *,
        norm1: ChannelNorm | None = None,
        norm2: ChannelNorm | None = None,
        half: bool,
    ) -> None:
        self.channels = safm.aggr.out_channels if safm is not None else _mixer(ccm)[1].out_channels
        self._half = half
        self._eps = next((norm.eps for norm in (norm1, norm2) if norm is not None), 0.0)
        self._norm1, self._norm2 = _norm_arguments(norm1), _norm_arguments(norm2)
        self._modulation = _modulation_arguments(safm, kernels)
        self._mixing = _mixing_arguments(ccm, kernels, half)

    def __call__(self, frame: FeatureMaps, source: Tensor, to: Tensor) -> Tensor:
        """Compute ``to = block(source)``; ``to`` is not ``source``."""
        size = (self.channels, frame.height, frame.width)
        weights = (*self._norm1, *self._modulation, *self._norm2, *self._mixing)
        frame.kernels.call("block", source, to, *size, *weights, self._eps, self._half)
        return to


def _norm_arguments(norm: ChannelNorm | None) -> tuple[Tensor | None, ...]:
    return (None, None) if norm is None else (_copy(norm.weight), _copy(norm.bias))


def _modulation_arguments(safm: SAFM | None, kernels: Kernels) -> tuple[Tensor | None, ...]:
    """Return factors, depthwise filters (channels, 9), their bias, aggregation of full and pooled levels, its bias."""
    if safm is None:
        return (None,) * 6
    levels: list[Any] = list(safm.mfr)
    full, *coarse = _copy(safm.aggr.weight)[:, :, 0, 0].chunk(len(levels), dim=1)  # (channels, chunk) each
    return (
        torch.tensor(safm.factors, dtype=torch.int32),
        torch.cat([_copy(conv.weight).flatten(1) for conv in levels]),
        torch.cat([_bias(conv) for conv in levels]),
        packed(full[:, None], kernels.block_size, half=False),
        torch.stack([packed(each[:, None], kernels.block_size, half=False) for each in coarse]),
        _bias(safm.aggr),
    )


def _mixing_arguments(ccm: CCM | None, kernels: Kernels, half: bool) -> tuple[Tensor | int | None, ...]:
    """Return the number of hidden channels, then weights and bias of the 3x3 and of the 1x1 convolution."""
    if ccm is None:
        return (0, None, None, None, None)
    first, back = _mixer(ccm)
    conv = Convolution(first, kernels, half=half)
    return (
        conv.out_channels,
        conv.weights,
        conv.bias,
        packed(back.weight.detach()[:, None, :, 0, 0], kernels.block_size, half),
        _bias(back),
    )


def _mixer(ccm: CCM | None) -> tuple[nn.Conv2d, nn.Conv2d]:
    assert ccm is not None
    first, _, back = ccm.ccm
    assert isinstance(first, nn.Conv2d)
    assert isinstance(back, nn.Conv2d)
    return first, back


def winograd_taps(weight: Tensor) -> Tensor:
    """Transform the filters (out, in, 3, 3) of a convolution to (out, 36, in)."""
    return torch.einsum("ia,ocab,jb->oijc", _FILTER, weight.detach().double(), _FILTER).flatten(1, 2)


def packed(weights: Tensor, block: int, half: bool) -> Tensor:
    """Pack (out, taps, in) as (blocks, taps, in, block); with ``half``, each int32 holds two bfloat16 along ``in``."""
    out, _, channels = weights.shape
    weights = nn.functional.pad(weights, (0, channels % 2 if half else 0, 0, 0, 0, -out % block))
    weights = weights.unflatten(0, (-1, block)).permute(0, 2, 3, 1)  # (blocks, taps, in, block)
    if not half:
        return weights.to(torch.float32).contiguous()
    pairs = weights.to(torch.bfloat16).unflatten(2, (-1, 2)).transpose(3, 4)  # (blocks, taps, in / 2, block, 2)
    return pairs.contiguous().view(torch.int32)[..., 0]


def _bias(conv: nn.Conv2d) -> Tensor:
    """Return the bias, or zeros if the convolution has none."""
    return torch.zeros(conv.out_channels, dtype=torch.float32) if conv.bias is None else _copy(conv.bias)


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
