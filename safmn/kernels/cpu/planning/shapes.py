"""Shapes of the results of torch's operators.

torch computes these itself on tensors without values, but it then imports its compiler, which takes a second or more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]
Arguments = dict[str, Any]


def _same(arguments: Arguments) -> list[Shape]:
    return [tuple(arguments["self" if "self" in arguments else "input"].shape)]


def _broadcast(arguments: Arguments) -> list[Shape]:
    shapes = [tuple(arguments[name].shape) for name in ("self", "other") if isinstance(arguments[name], Tensor)]
    rank = max(map(len, shapes))
    sides = list(zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True))
    if any(len({*of_dim} - {1}) > 1 for of_dim in sides):
        raise ValueError(f"tensors of shapes {shapes[0]} and {shapes[-1]} do not fit")
    return [tuple(next((side for side in of_dim if side != 1), 1) for of_dim in sides)]


def _convolution(arguments: Arguments) -> list[Shape]:
    source, weight = arguments["input"].shape, arguments["weight"].shape
    sides = [
        (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for side, kernel, padding, dilation, stride in zip(
            source[2:],
            weight[2:],
            *(_each(arguments[name], weight) for name in ("padding", "dilation", "stride")),
            strict=True,
        )
    ]
    if not arguments["transposed"] and (source[1] != weight[1] * arguments["groups"] or min(sides) < 1):
        raise ValueError(f"a convolution of {tuple(weight)} cannot read {tuple(source)}")
    return [(source[0], weight[0], *sides)]


def _each(numbers: Sequence[int], weight: Sequence[int]) -> list[int]:
    return list(numbers) * (len(weight) - 2) if len(numbers) == 1 else list(numbers)


def _cat(arguments: Arguments) -> list[Shape]:
    first, *others = (tensor.shape for tensor in arguments["tensors"])
    dim = arguments["dim"] % len(first)
    made = list(first)
    for other in others:
        if [*other[:dim], *other[dim + 1 :]] != [*first[:dim], *first[dim + 1 :]]:
            raise ValueError(f"tensors of shapes {tuple(first)} and {tuple(other)} cannot be joined")
        made[dim] += other[dim]
    return [tuple(made)]


def _reduced(arguments: Arguments) -> list[Shape]:
    source = arguments["self"].shape
    dims = {dim % len(source) for dim in arguments["dim"] or range(len(source))}
    if arguments["keepdim"]:
        return [tuple(1 if dim in dims else side for dim, side in enumerate(source))]
    return [tuple(side for dim, side in enumerate(source) if dim not in dims)]


def _enlarged(arguments: Arguments) -> list[Shape]:
    source = arguments["input" if "input" in arguments else "self"].shape
    size = arguments["output_size"]
    if size is None:
        size = [int(side * factor) for side, factor in zip(source[2:], arguments["scale_factors"], strict=True)]
    return [(*source[:2], *size)]


def _pooled(arguments: Arguments) -> list[Shape]:
    source = arguments["self"].shape
    if "output_size" in arguments:
        shape = (*source[:2], *arguments["output_size"])
        return [shape, shape]
    sides = []
    for dim, side in enumerate(source[2:]):
        kernel, padding, dilation = (_of_dim(arguments[n], dim) for n in ("kernel_size", "padding", "dilation"))
        stride = _of_dim(arguments["stride"], dim) or kernel
        sides.append((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    if min(sides) < 1:
        raise ValueError(f"an image of {tuple(source)} is too small for pooling")
    shape = (*source[:2], *sides)
    return [shape, shape]


def _of_dim(numbers: Any, dim: int) -> int:
    """Return a size along a dimension, given as a number or a list of one or two; 0 if the list is empty."""
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    return int(numbers[dim % len(numbers)]) if numbers else 0


def _shuffled(arguments: Arguments) -> list[Shape]:
    batch, channels, height, width = arguments["self"].shape
    scale = arguments["upscale_factor"]
    return [(batch, channels // scale**2, height * scale, width * scale)]


def _unshuffled(arguments: Arguments) -> list[Shape]:
    batch, channels, height, width = arguments["self"].shape
    scale = arguments["downscale_factor"]
    if height % scale or width % scale:
        raise ValueError(f"the sides of {width}x{height} pixels are no multiples of {scale}")
    return [(batch, channels * scale**2, height // scale, width // scale)]


def _padded(arguments: Arguments) -> list[Shape]:
    shape, padding = list(arguments["self"].shape), arguments["pad" if "pad" in arguments else "padding"]
    for i in range(len(padding) // 2):
        shape[-1 - i] += padding[2 * i] + padding[2 * i + 1]
    return [tuple(shape)]


def _selected(arguments: Arguments) -> list[Shape]:
    shape = list(arguments["self"].shape)
    shape[arguments["dim"]] = len(arguments["index"])
    return [tuple(shape)]


def _normalised(arguments: Arguments) -> list[Shape]:
    shape = tuple(arguments["input"].shape)
    statistics = shape[: len(shape) - len(arguments["normalized_shape"])]
    return [shape, statistics, statistics]


_UNARY = (
    *("gelu", "relu", "leaky_relu", "sigmoid", "silu", "tanh", "sqrt", "hardtanh"),
    *("clamp", "clamp_min", "clamp_max", "_prelu_kernel", "neg", "pow"),
)
SHAPES: dict[str, Callable[[Arguments], list[Shape]]] = {
    **dict.fromkeys((*_UNARY, "clone", "_to_copy", "dropout"), _same),
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div"), _broadcast),
    **dict.fromkeys(("mean", "var", "linalg_vector_norm"), _reduced),
    **dict.fromkeys(("upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d"), _enlarged),
    **dict.fromkeys(("max_pool2d_with_indices", "adaptive_max_pool2d"), _pooled),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _padded),
    "convolution": _convolution,
    "cat": _cat,
    "pixel_shuffle": _shuffled,
    "pixel_unshuffle": _unshuffled,
    "index_select": _selected,
    "native_layer_norm": _normalised,
}
"""Functions from an operator's arguments, by name, to its results' shapes. Operators that are not here are views."""
