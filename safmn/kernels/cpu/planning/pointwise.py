"""Translations of operators on each value: arithmetic and activation functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from safmn.kernels.cpu.planning.graph import Activation, Point, Unsupported, Value, whole
from safmn.kernels.cpu.planning.tracing import Operator, Tracer
from safmn.kernels.cpu.planning.translating import Translation, by_torch


def pointwise(tracer: Tracer, it: Operator, a: Any, b: Any, point: Point) -> list[Value]:
    """Record ``point`` of one or two tensors; ``b`` is None if there is one."""
    tensors = [item for item in (a, b) if item is not None]
    values = [tracer.operand(item) for item in tensors]
    if not any(value.in_maps for value in values):
        return _image_sum(tracer, values, point) or by_torch(tracer, it)
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


def unary(curve: str, *names: str, fixed: Sequence[float] = ()) -> Translation:
    """Return the translation of an activation whose parameters are arguments of these names."""

    def translation(tracer: Tracer, it: Operator) -> list[Value]:
        limits = [*fixed, *(float(it.arguments[name]) for name in names)]
        a = it.arguments["self"]
        return pointwise(tracer, it, a, None, Point(activation=Activation(curve, *limits)))

    return translation


def gelu(tracer: Tracer, it: Operator) -> list[Value]:
    """Translate GELU, exact or with tanh."""
    curve = "gelu" if it.arguments["approximate"] == "none" else "gelu_tanh"
    return pointwise(tracer, it, it.arguments["self"], None, Point(activation=Activation(curve)))


def clamp(tracer: Tracer, it: Operator) -> list[Value]:
    """Translate a clamp, with one limit or two."""
    low, high = (it.arguments.get(name) for name in ("min", "max"))
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        raise Unsupported("limits that are tensors")
    limits = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return pointwise(tracer, it, it.arguments["self"], None, Point(activation=Activation("clamp", *limits)))


def prelu(tracer: Tracer, it: Operator) -> list[Value]:
    """Translate a leaky ReLU with a slope for each channel."""
    x = tracer.operand(it.arguments["self"])
    if not x.in_maps:
        return by_torch(tracer, it)
    slopes = tracer.constant(it.arguments["weight"]).detach().reshape(1, -1, 1, 1).to(torch.float32).contiguous()
    constant = tracer.node("constant", slopes.shape, details=slopes, reduced=True)
    x = tracer.in_map(x)

    def point(*inputs: Value, op: str = "", curve: Activation = Activation()) -> Value:  # noqa: B008
        return whole(tracer.node("point", it.shape, *inputs, details=Point(op, activation=curve)))

    below = point(x, curve=Activation("clamp", -math.inf, 0.0))
    return [point(point(x, curve=Activation("relu")), point(below, whole(constant), op="*"), op="+")]


def binary(op: str, *, reverse: bool = False) -> Translation:
    """Return the translation of an operation on two tensors, or a tensor and a number."""

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
            return pointwise(tracer, it, a, b, Point(op))
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
            return by_torch(tracer, it)
        points["/"] = Point(scale=1 / number)
    return pointwise(tracer, it, tensor, None, points[op])


def power(tracer: Tracer, it: Operator) -> list[Value]:
    """Translate a square or a square root."""
    x, exponent = it.arguments["self"], it.arguments["exponent"]
    if not tracer.operand(x).in_maps:
        return by_torch(tracer, it)
    if exponent == 2:
        return pointwise(tracer, it, x, x, Point("*"))
    if exponent == 0.5:
        return pointwise(tracer, it, x, None, Point(activation=Activation("sqrt")))
    raise Unsupported(f"the power of {exponent}")


def negative(tracer: Tracer, it: Operator) -> list[Value]:
    """Translate a change of sign."""
    return pointwise(tracer, it, it.arguments["self"], None, Point(scale=-1.0))
