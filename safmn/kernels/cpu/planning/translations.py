"""What torch's operators are on the native kernels, by their names in torch."""

from __future__ import annotations

from typing import Any

import torch

from safmn.kernels.cpu.planning.graph import Enlarging, Point, Unsupported, Value, Weights, whole
from safmn.kernels.cpu.planning.pointwise import binary, clamp, gelu, negative, power, prelu, unary
from safmn.kernels.cpu.planning.reductions import layer_norm, length, mean, variance
from safmn.kernels.cpu.planning.tracing import Operator, Tracer
from safmn.kernels.cpu.planning.translating import Translation, by_torch, is_reduced, reduced_by_torch

# Convolutions


def _convolution(tracer: Tracer, it: Operator) -> list[Value]:
    arguments = it.arguments
    value = tracer.operand(arguments["input"])
    weight = tracer.constant(arguments["weight"]).detach()
    bias = None if arguments["bias"] is None else tracer.constant(arguments["bias"]).detach()
    if weight.ndim != 4 or arguments["transposed"]:
        raise Unsupported(f"a{' transposed' * arguments['transposed']} convolution in {weight.ndim - 2} dimensions")
    if max(arguments["stride"]) > 1:
        return reduced_by_torch(tracer, it)
    kernel, groups = tuple(weight.shape[2:]), arguments["groups"]
    keeps = tuple(arguments["padding"]) == (kernel[0] // 2, kernel[1] // 2) and set(arguments["dilation"]) == {1}
    details = Weights(weight, bias)
    if keeps and kernel == (3, 3) and groups == 1:
        return [whole(tracer.node("conv3", it.shape, tracer.together(value), details=details))]
    if keeps and kernel == (1, 1) and groups == 1:
        return [whole(tracer.node("conv1", it.shape, tracer.in_map(value), details=details))]
    if keeps and kernel == (3, 3) and groups == weight.shape[0] // (weight.shape[0] // groups) == value.channels:
        return [whole(tracer.node("depthwise", it.shape, tracer.together(value), details=details))]
    if is_reduced(value):
        return by_torch(tracer, it)
    words = f"a {kernel[0]}x{kernel[1]} convolution{'' if keeps else ' of this padding or dilation'}"
    raise Unsupported(words + f" in {groups} groups" * (groups > 1))


# Channels


def _cat(tracer: Tracer, it: Operator) -> list[Value]:
    values = [tracer.operand(tensor) for tensor in it.arguments["tensors"]]
    if not any(value.in_maps for value in values):
        return by_torch(tracer, it)
    if it.arguments["dim"] % len(it.shape) != 1 or any(value.channels_last for value in values):
        raise Unsupported("a concatenation along another dimension than channels")
    return [Value(tuple(piece for value in values for piece in value.pieces))]


def _split(tracer: Tracer, it: Operator) -> list[Value]:
    value = tracer.operand(it.arguments["self"])
    if not value.in_maps:
        return by_torch(tracer, it)
    if it.arguments["dim"] % len(it.shape) != 1 or value.channels_last:
        raise Unsupported("a division along another dimension than channels")
    parts, first = [], 0
    for output in it.outputs:
        parts.append(value.part(first, output.shape[1]))
        first += output.shape[1]
    return parts


def _slice(tracer: Tracer, it: Operator) -> list[Value]:
    value, full = tracer.operand(it.arguments["self"]), tuple(it.arguments["self"].shape)
    if it.shape == full:
        return [value]
    if not value.in_maps or it.arguments["dim"] % len(full) != 1 or it.arguments["step"] != 1 or value.channels_last:
        return by_torch(tracer, it)
    begin = it.arguments["start"] or 0
    return [value.part(begin + full[1] if begin < 0 else begin, it.shape[1])]


def _expand(tracer: Tracer, it: Operator) -> list[Value]:
    value, old = tracer.operand(it.arguments["self"]), tuple(it.arguments["self"].shape)
    if not value.in_maps:
        return by_torch(tracer, it)
    if old != it.shape:
        shape = it.shape
        if len(old) != 4 or old[1] != 1 or old[2:] != shape[2:] or value.channels_last:
            raise Unsupported("the operator expand")
        return [whole(tracer.node("point", shape, tracer.in_map(value), details=Point()))]
    return [value]


# Pixels


def _nhwc(tracer: Tracer, it: Operator) -> list[Value]:
    value, order = tracer.operand(it.arguments["self"]), tuple(it.arguments["dims"])
    if not value.in_maps:
        return by_torch(tracer, it)
    if (order, value.channels_last) in (((0, 2, 3, 1), False), ((0, 3, 1, 2), True)):
        return [Value(tracer.in_map(value).pieces, channels_last=not value.channels_last)]
    raise Unsupported("the operator permute")


# Sizes


def _enlarge(bilinear: bool) -> Translation:
    def translation(tracer: Tracer, it: Operator) -> list[Value]:
        arguments = it.arguments
        value = tracer.operand(arguments["input"] if "input" in arguments else arguments["self"])
        if not is_reduced(value) or arguments.get("align_corners"):
            return by_torch(tracer, it)
        small = tuple(value.pieces[0].node.shape[2:])
        factors = arguments.get("scale_factors") or (arguments.get("scales_h"), arguments.get("scales_w"))
        steps = [1 / factor if factor else small[side] / it.shape[2 + side] for side, factor in enumerate(factors)]
        details = Enlarging(bilinear, *steps)
        return [whole(tracer.node("enlarged", it.shape, value, details=details))]

    return translation


def _pool(tracer: Tracer, it: Operator) -> list[Value]:
    value = tracer.operand(it.arguments["self"])
    if not value.in_maps:
        return reduced_by_torch(tracer, it)
    source, shape = tracer.together(value), it.shape
    if "output_size" in it.arguments:
        bounds = [_adaptive(side, cells) for side, cells in zip(source.pieces[0].node.frame, shape[2:], strict=True)]
    else:
        bounds = [_strided(it.arguments, dim, cells) for dim, cells in enumerate(shape[2:])]
    flat = [value for first, last in bounds for value in (*first, *last)]
    details = torch.tensor(flat, dtype=torch.int32)
    return [whole(tracer.node("pool", shape, source, details=details, reduced=True))]


def _adaptive(side: int, cells: int) -> tuple[list[int], list[int]]:
    return [i * side // cells for i in range(cells)], [-(-(i + 1) * side // cells) for i in range(cells)]


def _strided(arguments: dict[str, Any], dim: int, cells: int) -> tuple[list[int], list[int]]:
    size, stride, padding, dilation = (
        _of_dim(arguments[name], dim) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    if padding or dilation != 1 or arguments["ceil_mode"]:
        raise Unsupported("pooling with padding or dilation")
    step = stride or size
    return [i * step for i in range(cells)], [i * step + size for i in range(cells)]


def _of_dim(numbers: Any, dim: int) -> int:
    """Return a size along a dimension, given as a number or a list of one or two; 0 if the list is empty."""
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    return int(numbers[dim % len(numbers)]) if numbers else 0


def _shuffle(tracer: Tracer, it: Operator) -> list[Value]:
    value = tracer.operand(it.arguments["self"])
    if not value.in_maps:
        return by_torch(tracer, it)
    node = tracer.node("shuffle", it.shape, tracer.together(value), details=int(it.arguments["upscale_factor"]))
    return [whole(node)]


TRANSLATIONS: dict[str, Translation] = {
    "convolution": _convolution,
    "gelu": gelu,
    "relu": unary("relu"),
    "leaky_relu": unary("leaky_relu", "negative_slope"),
    "sigmoid": unary("sigmoid"),
    "silu": unary("silu"),
    "tanh": unary("tanh"),
    "sqrt": unary("sqrt"),
    "hardtanh": unary("clamp", "min_val", "max_val"),
    "clamp": clamp,
    "clamp_min": clamp,
    "clamp_max": clamp,
    "_prelu_kernel": prelu,
    "neg": negative,
    "pow": power,
    "add": binary("+"),
    "sub": binary("-"),
    "rsub": binary("-", reverse=True),
    "mul": binary("*"),
    "div": binary("/"),
    "cat": _cat,
    "split": _split,
    "split_with_sizes": _split,
    "slice": _slice,
    "expand": _expand,
    "permute": _nhwc,
    "native_layer_norm": layer_norm,
    "mean": mean,
    "var": variance,
    "linalg_vector_norm": length,
    "upsample_bilinear2d": _enlarge(bilinear=True),
    "upsample_nearest2d": _enlarge(bilinear=False),
    "upsample_bicubic2d": by_torch,
    "max_pool2d_with_indices": _pool,
    "adaptive_max_pool2d": _pool,
    "pixel_shuffle": _shuffle,
    "pixel_unshuffle": by_torch,
    "constant_pad_nd": by_torch,
    "reflection_pad2d": by_torch,
    "replication_pad2d": by_torch,
    "index_select": by_torch,
}
"""Operators by torch's names. Torch runs some of them, on plain tensors, which are read into maps where necessary."""
