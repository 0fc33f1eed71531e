"""What torch's operators are on the native kernels, by their names in torch.

Each function gets the tracer and the operator, and returns the results' values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from safmn.kernels.cpu.planning.graph import (
    Activation,
    Enlarging,
    Point,
    Unsupported,
    Value,
    Weights,
    whole,
)
from safmn.kernels.cpu.planning.tracing import Operator, Tracer

Translation = Callable[[Tracer, Operator], list[Value]]


def _by_torch(tracer: Tracer, it: Operator) -> list[Value]:
    return tracer.by_torch(it.function, it.arguments, it.outputs)


def _reduced_by_torch(tracer: Tracer, it: Operator) -> list[Value]:
    return tracer.by_torch(it.function, it.arguments, it.outputs, reduces=True)


def _is_reduced(value: Value) -> bool:
    return all(node.reduced for node in value.nodes)


# Convolutions


def _convolution(tracer: Tracer, it: Operator) -> list[Value]:
    arguments = it.arguments
    value = tracer.operand(arguments["input"])
    weight = tracer.constant(arguments["weight"]).detach()
    bias = None if arguments["bias"] is None else tracer.constant(arguments["bias"]).detach()
    if weight.ndim != 4 or arguments["transposed"]:
        raise Unsupported(f"a{' transposed' * arguments['transposed']} convolution in {weight.ndim - 2} dimensions")
    if max(arguments["stride"]) > 1:
        return _reduced_by_torch(tracer, it)
    kernel, groups = tuple(weight.shape[2:]), arguments["groups"]
    keeps = tuple(arguments["padding"]) == (kernel[0] // 2, kernel[1] // 2) and set(arguments["dilation"]) == {1}
    details = Weights(weight, bias)
    if keeps and kernel == (3, 3) and groups == 1:
        return [whole(tracer.node("conv3", it.shape, tracer.together(value), details=details))]
    if keeps and kernel == (1, 1) and groups == 1:
        return [whole(tracer.node("conv1", it.shape, tracer.in_map(value), details=details))]
    if keeps and kernel == (3, 3) and groups == weight.shape[0] // (weight.shape[0] // groups) == value.channels:
        return [whole(tracer.node("depthwise", it.shape, tracer.together(value), details=details))]
    if _is_reduced(value):
        return _by_torch(tracer, it)
    words = f"a {kernel[0]}x{kernel[1]} convolution{'' if keeps else ' of this padding or dilation'}"
    raise Unsupported(words + f" in {groups} groups" * (groups > 1))


# Operations on each value


def _pointwise(tracer: Tracer, it: Operator, a: Any, b: Any, point: Point) -> list[Value]:
    """Record ``point`` of one or two tensors; ``b`` is None if there is one."""
    tensors = [item for item in (a, b) if item is not None]
    values = [tracer.operand(item) for item in tensors]
    if not any(value.in_maps for value in values):
        return _image_sum(tracer, values, point) or _by_torch(tracer, it)
    last = any(value.channels_last for value in values)
    if last:
        raise Unsupported(f"the operator {it.name} on channels-last tensors")
    inputs = tuple(_beside(tracer, value, item, it.shape) for value, item in zip(values, tensors, strict=True))
    return [whole(tracer.node("point", it.shape, *inputs, details=point))]


def _image_sum(tracer: Tracer, values: list[Value], point: Point) -> list[Value] | None:
    """Return the sum of a pixel shuffle and an image that is enlarged bilinearly as much, as one operation."""
    nodes = [value.pieces[0].node for value in values]
    if point != Point("+") or {node.kind for node in nodes} != {"shuffle", "torch"} or nodes[0].shape != nodes[1].shape:
        return None
    shuffled, enlarged = nodes if nodes[0].kind == "shuffle" else nodes[::-1]
    call, image = enlarged.details, enlarged.inputs[0]
    if call.operator._schema.name != "aten::upsample_bilinear2d" or len(shuffled.inputs) > 1:
        return None
    whole_image = len(image.pieces) == 1 and image.pieces[0].is_whole
    same = whole_image and image.pieces[0].node.frame == shuffled.inputs[0].pieces[0].node.frame
    if not same or any(item is True for item in call.args):  # align_corners
        return None
    details = shuffled.details
    return [whole(tracer.node("shuffle", shuffled.shape, shuffled.inputs[0], tracer.in_map(image), details=details))]


def _beside(tracer: Tracer, value: Value, tensor: Tensor, shape: Sequence[int]) -> Value:
    """Return an operand of a result of this shape: a frame, or one number for each channel."""
    dims = tuple(tensor.shape)
    dims = (1,) * (4 - len(dims)) + dims
    if dims[0] != 1 or dims[1] not in (1, shape[1]):
        raise Unsupported(f"arithmetic of tensors of shapes {tuple(shape)} and {tuple(tensor.shape)}")
    if dims[2:] == tuple(shape[2:]) and not (dims[2:] == (1, 1) and not value.in_maps):
        if value.in_maps and all(node.kind == "enlarged" for node in value.nodes):
            return value
        return tracer.in_map(value)
    if dims[2:] != (1, 1):
        raise Unsupported(f"arithmetic of tensors of shapes {tuple(shape)} and {tuple(tensor.shape)}")
    return tracer.stored(value)


def _unary(curve: str, *names: str, fixed: Sequence[float] = ()) -> Translation:
    """Return the translation of an activation whose parameters are arguments of these names."""

    def translation(tracer: Tracer, it: Operator) -> list[Value]:
        limits = [*fixed, *(float(it.arguments[name]) for name in names)]
        a = it.arguments["self"]
        return _pointwise(tracer, it, a, None, Point(activation=Activation(curve, *limits)))

    return translation


def _gelu(tracer: Tracer, it: Operator) -> list[Value]:
    curve = "gelu" if it.arguments["approximate"] == "none" else "gelu_tanh"
    return _pointwise(tracer, it, it.arguments["self"], None, Point(activation=Activation(curve)))


def _clamp(tracer: Tracer, it: Operator) -> list[Value]:
    low, high = (it.arguments.get(name) for name in ("min", "max"))
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        raise Unsupported("limits that are tensors")
    limits = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return _pointwise(tracer, it, it.arguments["self"], None, Point(activation=Activation("clamp", *limits)))


def _prelu(tracer: Tracer, it: Operator) -> list[Value]:
    x = tracer.operand(it.arguments["self"])
    if not x.in_maps:
        return _by_torch(tracer, it)
    slopes = tracer.constant(it.arguments["weight"]).detach().reshape(1, -1, 1, 1).to(torch.float32).contiguous()
    constant = tracer.node("constant", slopes.shape, details=slopes, reduced=True)
    x = tracer.in_map(x)

    def point(*inputs: Value, op: str = "", curve: Activation = Activation()) -> Value:  # noqa: B008
        return whole(tracer.node("point", it.shape, *inputs, details=Point(op, activation=curve)))

    below = point(x, curve=Activation("clamp", -math.inf, 0.0))
    return [point(point(x, curve=Activation("relu")), point(below, whole(constant), op="*"), op="+")]


def _binary(op: str, *, reverse: bool = False) -> Translation:
    def translation(tracer: Tracer, it: Operator) -> list[Value]:
        a, b = it.arguments["self"], it.arguments["other"]
        alpha = float(it.arguments.get("alpha") or 1)
        if reverse:
            a, b = b, a
        number, tensor = (a, b) if not isinstance(a, Tensor) else (b, a)
        if isinstance(number, Tensor):
            if alpha != 1:
                raise Unsupported(f"the operator {it.name} with alpha")
            if _is_number(tracer, number) or _is_number(tracer, tensor):
                number, tensor = (number, tensor) if _is_number(tracer, number) else (tensor, number)
                return _with_number(tracer, it, tensor, float(tracer.constant(number)), op, first=number is a)
            return _pointwise(tracer, it, a, b, Point(op))
        return _with_number(tracer, it, tensor, float(number) * alpha, op, first=number is a)

    return translation


def _is_number(tracer: Tracer, tensor: Tensor) -> bool:
    return tensor.numel() == 1 and tracer.value_of(tensor) is None


def _with_number(tracer: Tracer, it: Operator, tensor: Tensor, number: float, op: str, *, first: bool) -> list[Value]:
    """Record ``tensor op number``, or ``number op tensor`` if the number is ``first``."""
    points = {
        "+": Point(shift=number),
        "-": Point(scale=-1.0, shift=number) if first else Point(shift=-number),
        "*": Point(scale=number),
    }
    if op == "/":
        if first or number == 0:
            if tracer.operand(tensor).in_maps:
                raise Unsupported("a division of a number by a tensor, or of a tensor by zero")
            return _by_torch(tracer, it)
        points["/"] = Point(scale=1 / number)
    return _pointwise(tracer, it, tensor, None, points[op])


def _power(tracer: Tracer, it: Operator) -> list[Value]:
    x, exponent = it.arguments["self"], it.arguments["exponent"]
    if not tracer.operand(x).in_maps:
        return _by_torch(tracer, it)
    if exponent == 2:
        return _pointwise(tracer, it, x, x, Point("*"))
    if exponent == 0.5:
        return _pointwise(tracer, it, x, None, Point(activation=Activation("sqrt")))
    raise Unsupported(f"the power of {exponent}")


def _negative(tracer: Tracer, it: Operator) -> list[Value]:
    return _pointwise(tracer, it, it.arguments["self"], None, Point(scale=-1.0))


# Channels


def _cat(tracer: Tracer, it: Operator) -> list[Value]:
    values = [tracer.operand(tensor) for tensor in it.arguments["tensors"]]
    if not any(value.in_maps for value in values):
        return _by_torch(tracer, it)
    if it.arguments["dim"] % len(it.shape) != 1 or any(value.channels_last for value in values):
        raise Unsupported("a concatenation along another dimension than channels")
    return [Value(tuple(piece for value in values for piece in value.pieces))]


def _split(tracer: Tracer, it: Operator) -> list[Value]:
    value = tracer.operand(it.arguments["self"])
    if not value.in_maps:
        return _by_torch(tracer, it)
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
        return _by_torch(tracer, it)
    begin = it.arguments["start"] or 0
    return [value.part(begin + full[1] if begin < 0 else begin, it.shape[1])]


def _expand(tracer: Tracer, it: Operator) -> list[Value]:
    value, old = tracer.operand(it.arguments["self"]), tuple(it.arguments["self"].shape)
    if not value.in_maps:
        return _by_torch(tracer, it)
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
        return _by_torch(tracer, it)
    if (order, value.channels_last) in (((0, 2, 3, 1), False), ((0, 3, 1, 2), True)):
        return [Value(tracer.in_map(value).pieces, channels_last=not value.channels_last)]
    raise Unsupported("the operator permute")


def _layer_norm(tracer: Tracer, it: Operator) -> list[Value]:
    value = tracer.operand(it.arguments["input"])
    if not value.in_maps:
        return _by_torch(tracer, it)[:1]
    if not value.channels_last or list(it.arguments["normalized_shape"]) != [value.channels]:
        raise Unsupported("a layer normalisation of anything but the channels of each pixel")
    weight, bias = it.arguments["weight"], it.arguments["bias"]
    ones = torch.ones(value.channels)
    given = Weights(
        ones if weight is None else tracer.constant(weight).detach(),
        0 * ones if bias is None else tracer.constant(bias).detach(),
        float(it.arguments["eps"]),
    )
    source = tracer.together(Value(value.pieces))
    node = tracer.node("normalise", source.pieces[0].node.shape, source, details=given)
    node.shape = (1, value.channels, *node.frame)
    return [Value(whole(node).pieces, channels_last=True)]


def _mean(tracer: Tracer, it: Operator) -> list[Value]:
    return _reduction(tracer, it, "mean", lambda mean, squares, count: mean)


def _variance(tracer: Tracer, it: Operator) -> list[Value]:
    correction = it.arguments["correction"]
    correction = 1.0 if correction is None else float(correction)
    return _reduction(
        tracer, it, None, lambda mean, squares, count: squares / max(count - correction, 0.0)
    )  # as torch: NaN or infinity of a single pixel


def _reduction(
    tracer: Tracer, it: Operator, of_channels: str | None, finish: Callable[[Tensor, Tensor, int], Tensor]
) -> list[Value]:
    """Record a mean or variance over all pixels, or over the channels of each pixel."""
    value = tracer.operand(it.arguments["self"])
    if not value.in_maps:
        return _reduced_by_torch(tracer, it)
    rank = it.arguments["self"].ndim
    dims = sorted(dim % rank for dim in it.arguments["dim"] or range(rank))
    if value.channels_last or rank != 4 or not it.arguments["keepdim"]:
        raise Unsupported(f"the operator {it.name} of these dimensions")
    if dims == [2, 3]:
        return [whole(tracer.node("moments", it.shape, tracer.together(value), details=finish, reduced=True))]
    if dims == [1] and of_channels:
        return [whole(tracer.node(of_channels, it.shape, tracer.together(value)))]
    raise Unsupported(f"the operator {it.name} over dimensions {dims}")


def _length(tracer: Tracer, it: Operator) -> list[Value]:
    value, dims = tracer.operand(it.arguments["self"]), it.arguments["dim"]
    if not value.in_maps:
        return _by_torch(tracer, it)
    if it.arguments["ord"] != 2 or list(dims or []) != [1] or not it.arguments["keepdim"]:
        raise Unsupported("this vector norm")
    return [whole(tracer.node("length", it.shape, tracer.together(value)))]


# Sizes


def _enlarge(bilinear: bool) -> Translation:
    def translation(tracer: Tracer, it: Operator) -> list[Value]:
        arguments = it.arguments
        value = tracer.operand(arguments["input"] if "input" in arguments else arguments["self"])
        if not _is_reduced(value) or arguments.get("align_corners"):
            return _by_torch(tracer, it)
        small = tuple(value.pieces[0].node.shape[2:])
        factors = arguments.get("scale_factors") or (arguments.get("scales_h"), arguments.get("scales_w"))
        steps = [1 / factor if factor else small[side] / it.shape[2 + side] for side, factor in enumerate(factors)]
        details = Enlarging(bilinear, *steps)
        return [whole(tracer.node("enlarged", it.shape, value, details=details))]

    return translation


def _pool(tracer: Tracer, it: Operator) -> list[Value]:
    value = tracer.operand(it.arguments["self"])
    if not value.in_maps:
        return _reduced_by_torch(tracer, it)
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
        return _by_torch(tracer, it)
    node = tracer.node("shuffle", it.shape, tracer.together(value), details=int(it.arguments["upscale_factor"]))
    return [whole(node)]


TRANSLATIONS: dict[str, Translation] = {
    "convolution": _convolution,
    "gelu": _gelu,
    "relu": _unary("relu"),
    "leaky_relu": _unary("leaky_relu", "negative_slope"),
    "sigmoid": _unary("sigmoid"),
    "silu": _unary("silu"),
    "tanh": _unary("tanh"),
    "sqrt": _unary("sqrt"),
    "hardtanh": _unary("clamp", "min_val", "max_val"),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "_prelu_kernel": _prelu,
    "neg": _negative,
    "pow": _power,
    "add": _binary("+"),
    "sub": _binary("-"),
    "rsub": _binary("-", reverse=True),
    "mul": _binary("*"),
    "div": _binary("/"),
    "cat": _cat,
    "split": _split,
    "split_with_sizes": _split,
    "slice": _slice,
    "expand": _expand,
    "permute": _nhwc,
    "native_layer_norm": _layer_norm,
    "mean": _mean,
    "var": _variance,
    "linalg_vector_norm": _length,
    "upsample_bilinear2d": _enlarge(bilinear=True),
    "upsample_nearest2d": _enlarge(bilinear=False),
    "upsample_bicubic2d": _by_torch,
    "max_pool2d_with_indices": _pool,
    "adaptive_max_pool2d": _pool,
    "pixel_shuffle": _shuffle,
    "pixel_unshuffle": _by_torch,
    "constant_pad_nd": _by_torch,
    "reflection_pad2d": _by_torch,
    "replication_pad2d": _by_torch,
    "index_select": _by_torch,
}
"""Operators by torch's names. Torch runs some of them, on plain tensors, which are read into maps where necessary."""
