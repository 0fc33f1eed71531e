"""The blocks of SAFMN as one differentiable operation on a GPU.

A block is three kernels forward and six backward, beside its 3x3 convolution, which is cuDNN's. The stream of features
that blocks add to stays float32; what convolutions read and write, and what is kept for the backward pass, has the type
of the arithmetic. All blocks are one operation for autograd, so that their parameters are stacked once and the partial
sums of their gradients added up once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from safmn.kernels.gpu import triton_kernels as kernels
from safmn.kernels.gpu.parameters import Parameters, aligned

_EPS = 1e-6  # of the norms
_CHUNK = 32  # hidden channels of a program of feed_forward_backward
# How each kernel is launched: the fastest of four to eight ways on an H100, for 64 patches of 48x48 and dim 36.
# ``rows``: pixels of a program that has no window.
_LAUNCH: dict[str, dict[str, Any]] = {
    "norm_and_pool": {"num_warps": 1},
    "modulate": {"num_warps": 4, "maxnreg": 128},
    "feed_forward": {"rows": 64, "num_warps": 4},
    "feed_forward_backward": {"rows": 32, "num_warps": 4, "num_stages": 1},
    "modulate_backward": {"rows": 8, "num_warps": 1},
    "aggregate_backward": {"num_warps": 2, "num_stages": 1},
    "depthwise_sums": {"tile": 64, "num_warps": 4},
    "features_backward": {"num_warps": 2},
    "norm_backward": {"rows": 8, "num_warps": 1},
}
_PROGRAMS = {"feed_forward_backward": 264, "aggregate_backward": 528, "depthwise_sums": 128}  # that share all pixels


class _Sizes:
    """Sizes of an image (B, h, w, dim), and those of the kernels' tiles: powers of two."""

    def __init__(self, x: Tensor, hidden: int, dtype: torch.dtype) -> None:
        self.batch, self.height, self.width, self.dim = x.shape
        self.hidden = hidden
        self.pixels = self.batch * self.height * self.width
        self.windows = self.pixels // kernels.WINDOW_PIXELS
        self.coarse_pixels = self.pixels // 4 + self.pixels // 16 + self.pixels // 64  # of the three pooled levels
        self.place = (self.pixels, self.height, self.width)
        self.quarter = self.dim // 4
        self.aligned = aligned(self.dim)
        self.wide, self.padded, self.broad = _tile(self.aligned), _tile(self.quarter), _tile(hidden)
        self.chunks = -(-hidden // _CHUNK)
        self.precision = "tf32" if dtype == torch.float32 else "ieee"

    def named(self, *names: str) -> dict[str, Any]:
        """Sizes as a kernel's arguments."""
        return {name: getattr(self, name) for name in names}

    def grid(self, kernel: str) -> tuple[int]:
        """A program for each so many pixels."""
        return (self.pixels // int(_LAUNCH[kernel]["rows"]),)

    def planes(self, tensor: Tensor, channels: int) -> Tensor:
        """(pixels, channels) as (B, channels, h, w) that lies channels_last."""
        return tensor.view(self.batch, self.height, self.width, channels).permute(0, 3, 1, 2)


def _tile(size: int) -> int:
    """The power of two that holds ``size``, and that a matrix unit takes."""
    return max(16, 1 << (size - 1).bit_length())


def _matrices(parameters: Parameters, dtype: torch.dtype, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is multiplied, in the type of the arithmetic: aggr, mix (channels padded, channels_last), back."""
    mix = parameters.mix  # (blocks, hidden, dim, 3, 3)
    mix = F.pad(mix.permute(0, 1, 3, 4, 2), (0, channels - mix.shape[2])).to(dtype).permute(0, 1, 4, 2, 3)
    return parameters.aggr.to(dtype), mix, parameters.back.to(dtype)


class _Blocks(torch.autograd.Function):
    """All blocks: x (B, h, w, dim) in float32 and their parameters to the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *stacked: Tensor) -> Tensor:
        parameters = Parameters(*stacked)
        sizes = _Sizes(x, parameters.mix.shape[1], dtype)
        matrices = _matrices(parameters, dtype, sizes.aligned)
        stream, kept = x.contiguous().view(sizes.pixels, sizes.dim), []
        for number in range(len(parameters.norm1)):
            stream, needed = _forward(stream, number, parameters, matrices, sizes, dtype)
            kept.append(needed)
        ctx.sizes, ctx.kept = sizes, kept
        ctx.save_for_backward(*stacked, *matrices)
        return stream.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        saved, sizes = ctx.saved_tensors, ctx.sizes
        parameters, matrices = Parameters(*saved[: len(Parameters._fields)]), saved[len(Parameters._fields) :]
        blocks = len(parameters.norm1)
        sums = _Sums.empty(blocks, sizes, slope.device)
        slope = slope.contiguous().view(sizes.pixels, sizes.dim)
        mixes = []
        for number in reversed(range(blocks)):
            slope, mix = _backward(slope, number, parameters, matrices, ctx.kept.pop(), sums, sizes)
            mixes.append(mix)
        return (slope.view(sizes.batch, sizes.height, sizes.width, -1), None, *sums.gradients(mixes[::-1], sizes))


def _forward(
    x: Tensor, number: int, parameters: Parameters, matrices: Sequence[Tensor], sizes: _Sizes, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Block ``number``: the stream after it, and what its backward needs."""
    own = Parameters(*(stacked[number] for stacked in parameters))
    aggr, mix, back = (matrix[number] for matrix in matrices)
    features = x.new_empty(sizes.pixels * sizes.dim + sizes.coarse_pixels * sizes.quarter, dtype=dtype)
    kernels.norm_and_pool[(sizes.windows,)](
        x, own.norm1, own.norm1_bias, features, *sizes.place, _EPS,
        **sizes.named("dim", "quarter", "wide"), **_LAUNCH["norm_and_pool"],
    )  # fmt: skip
    modulated, gates = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
    levels = x.new_empty((sizes.pixels + sizes.coarse_pixels) * sizes.quarter, dtype=dtype)
    normed = x.new_empty(sizes.pixels, sizes.aligned, dtype=dtype)
    kernels.modulate[(sizes.windows,)](
        x, features, own.depthwise, own.depthwise_bias, aggr, own.aggr_bias, own.norm2, own.norm2_bias,
        levels, gates, modulated, normed, *sizes.place, _EPS,
        **sizes.named("dim", "quarter", "wide", "padded", "aligned", "precision"), **_LAUNCH["modulate"],
    )  # fmt: skip
    mixed = F.conv2d(sizes.planes(normed, sizes.aligned), mix, padding=1)
    mixed = mixed.contiguous(memory_format=torch.channels_last)
    kernels.feed_forward[sizes.grid("feed_forward")](
        modulated, mixed, own.mix_bias, back, own.back_bias, modulated,
        **sizes.named("dim", "hidden", "wide", "broad", "precision"), **_LAUNCH["feed_forward"],
    )  # fmt: skip
    return modulated, (x, features, levels, gates, normed, mixed)


def _backward(
    slope: Tensor,
    number: int,
    parameters: Parameters,
    matrices: Sequence[Tensor],
    kept: Sequence[Tensor],
    sums: _Sums,
    sizes: _Sizes,
) -> tuple[Tensor, Tensor]:
    """The gradient of block ``number``'s input, and that of its padded mix; the other parameters' go to ``sums``."""
    own = Parameters(*(stacked[number] for stacked in parameters))
    aggr, mix, back = (matrix[number] for matrix in matrices)
    x, features, levels, gates, normed, mixed = kept
    mixed_slope = torch.empty_like(mixed)
    kernels.feed_forward_backward[(sizes.chunks, sums.back.shape[1])](
        slope, mixed, own.mix_bias, back, mixed_slope, sums.back[number], sums.back_vectors[number], sizes.pixels,
        chunk=_CHUNK, **sizes.named("dim", "hidden", "wide", "precision"), **_LAUNCH["feed_forward_backward"],
    )  # fmt: skip
    normed_slope, mix_slope, _ = torch.ops.aten.convolution_backward(
        mixed_slope, sizes.planes(normed, sizes.aligned), mix, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
        [True, True, False],
    )  # fmt: skip
    normed_slope = normed_slope.contiguous(memory_format=torch.channels_last)
    x_slope, feature_slope, gate_slope = torch.empty_like(x), torch.empty_like(gates), torch.empty_like(gates)
    kernels.modulate_backward[sizes.grid("modulate_backward")](
        x, features, gates, own.norm2, slope, normed_slope, x_slope, feature_slope, gate_slope,
        sums.modulate_vectors[number], _EPS, **sizes.named("dim", "wide", "aligned"), **_LAUNCH["modulate_backward"],
    )  # fmt: skip
    slopes = torch.empty_like(levels)
    kernels.aggregate_backward[(sums.aggr.shape[1],)](
        gate_slope, levels, aggr, slopes, sums.aggr[number], sizes.windows, *sizes.place,
        **sizes.named("dim", "quarter", "wide", "padded", "precision"), **_LAUNCH["aggregate_backward"],
    )  # fmt: skip
    tiles = sizes.named("dim", "quarter", "padded")
    kernels.depthwise_sums[(40, sums.depthwise.shape[1])](
        features, slopes, sums.depthwise[number], *sizes.place, **tiles, **_LAUNCH["depthwise_sums"]
    )
    kernels.features_backward[(sizes.windows, 4)](
        features, slopes, own.depthwise, feature_slope, *sizes.place, **tiles, **_LAUNCH["features_backward"]
    )
    kernels.norm_backward[sizes.grid("norm_backward")](
        x, own.norm1, feature_slope, x_slope, sums.norm1[number], _EPS,
        **sizes.named("dim", "wide"), **_LAUNCH["norm_backward"],
    )  # fmt: skip
    return x_slope, mix_slope


class _Sums(NamedTuple):
    """Partial sums of the parameters' gradients, as the kernels give them: (blocks, programs, ...)."""

    back: Tensor
    back_vectors: Tensor
    aggr: Tensor
    modulate_vectors: Tensor
    depthwise: Tensor
    norm1: Tensor

    @classmethod
    def empty(cls, blocks: int, sizes: _Sizes, device: torch.device) -> _Sums:
        programs = {name: min(sizes.windows, count) for name, count in _PROGRAMS.items()}
        wide, padded, dim = sizes.wide, sizes.padded, sizes.dim

        def new(*shape: int) -> Tensor:
            return torch.empty(blocks, *shape, device=device)

        return cls(
            back=new(programs["feed_forward_backward"], sizes.chunks, wide, _CHUNK),
            back_vectors=new(programs["feed_forward_backward"], sizes.chunks, wide + _CHUNK),
            aggr=new(programs["aggregate_backward"], 4, wide, padded),
            modulate_vectors=new(*sizes.grid("modulate_backward"), 3, dim),
            depthwise=new(programs["depthwise_sums"], 4, 10, padded),
            norm1=new(*sizes.grid("norm_backward"), 2, dim),
        )

    def gradients(self, mixes: Sequence[Tensor], sizes: _Sizes) -> tuple[Tensor, ...]:
        """The whole sums, as the gradients of :class:`Parameters`."""
        blocks, dim, hidden, quarter, wide = len(mixes), sizes.dim, sizes.hidden, sizes.quarter, sizes.wide
        vectors, back_vectors = self.modulate_vectors.sum(1), self.back_vectors.sum(1)  # (blocks, chunks, ...)
        back = self.back.sum(1).transpose(1, 2).flatten(2)  # (blocks, wide, chunks * _CHUNK)
        taps, norm1 = self.depthwise.sum(1)[..., :quarter], self.norm1.sum(1)
        aggr = self.aggr.sum(1)[:, :, :dim, :quarter]  # (blocks, levels, dim, quarter)
        return Parameters(
            norm1=norm1[:, 0],
            norm1_bias=norm1[:, 1],
            depthwise=taps[:, :, :9].transpose(2, 3).reshape(blocks, dim, 9),
            depthwise_bias=taps[:, :, 9].reshape(blocks, dim),
            aggr=aggr.transpose(1, 2).reshape(blocks, dim, dim),
            aggr_bias=vectors[:, 0],
            norm2=vectors[:, 1],
            norm2_bias=vectors[:, 2],
            mix=torch.stack([mix[:, :dim] for mix in mixes]).float(),
            mix_bias=back_vectors[..., wide:].flatten(1)[:, :hidden],
            back=back[:, :dim, :hidden],
            back_bias=back_vectors[:, 0, :dim],
        )


def run_blocks(x: Tensor, parameters: Parameters, dtype: torch.dtype) -> Tensor:
    """All blocks, one after the other.

    Args:
        x: (B, h, w, dim), float32; h and w multiples of 8, dim of 4.
        dtype: arithmetic within the blocks.

    Returns:
        The shape and type of ``x``.
    """
    result: Tensor = _Blocks.apply(x, dtype, *parameters)  # type: ignore[no-untyped-call]
    return result
