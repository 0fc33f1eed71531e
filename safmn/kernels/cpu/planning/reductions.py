"""Translations of operators that join many values: means, variances, lengths and norms."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from safmn.kernels.cpu.planning.graph import Piece, Point, Unsupported, Value, Weights, whole
from safmn.kernels.cpu.planning.tracing import Operator, Tracer
from safmn.kernels.cpu.planning.translating import by_torch, reduced_by_torch

Finish = Callable[[Tensor, Tensor, int], Tensor]
"""Makes a result of means, sums of squared distances from them, and the number of values."""


def layer_norm(tracer: Tracer, it: Operator) -> list[Value]:
    """Translate a layer normalisation over the channels of each pixel."""
    value = tracer.operand(it.arguments["input"])
    if not value.in_maps:
        return by_torch(tracer, it)[:1]
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


def mean(tracer: Tracer, it: Operator) -> list[Value]:
    """Translate a mean over all pixels or over channels; that of ``(x - mean(x)) ** 2`` is a variance."""
    value = tracer.value_of(it.arguments["self"])
    deviated = None if value is None else _deviated(value)
    if deviated is not None and _dims(it) == [2, 3] and it.arguments["keepdim"]:
        return [_statistics(tracer, deviated, functools.partial(_variance_of, correction=0.0))]
    return _reduction(tracer, it, "mean", _mean_of)


def variance(tracer: Tracer, it: Operator) -> list[Value]:
    """Translate a variance over all pixels."""
    correction = it.arguments["correction"]
    correction = 1.0 if correction is None else float(correction)
    return _reduction(tracer, it, None, functools.partial(_variance_of, correction=correction))


def _mean_of(mean: Tensor, squares: Tensor, count: int) -> Tensor:
    return mean


def _variance_of(mean: Tensor, squares: Tensor, count: int, correction: float) -> Tensor:
    return squares / max(count - correction, 0.0)  # as torch: NaN or infinity of a single pixel


def _dims(it: Operator) -> list[int]:
    rank = it.arguments["self"].ndim
    return sorted(dim % rank for dim in it.arguments["dim"] or range(rank))


def _reduction(tracer: Tracer, it: Operator, of_channels: str | None, finish: Finish) -> list[Value]:
    """Record a mean or variance over all pixels, or over the channels of each pixel."""
    value = tracer.operand(it.arguments["self"])
    if not value.in_maps:
        return reduced_by_torch(tracer, it)
    dims = _dims(it)
    if value.channels_last or it.arguments["self"].ndim != 4 or not it.arguments["keepdim"]:
        raise Unsupported(f"the operator {it.name} of these dimensions")
    if dims == [2, 3]:
        return [_statistics(tracer, value, finish)]
    if dims == [1] and of_channels:
        return [whole(tracer.node(of_channels, it.shape, tracer.together(value)))]
    raise Unsupported(f"the operator {it.name} over dimensions {dims}")


def _statistics(tracer: Tracer, value: Value, finish: Finish) -> Value:
    """Record a mean or variance over all pixels; each range of channels is reduced where it is."""
    found: list[Piece] = []
    for piece in tracer.in_map(value).pieces:
        moments = tracer.moments(piece)
        node = tracer.node("statistic", (1, piece.count, 1, 1), whole(moments), details=finish, reduced=True)
        found += whole(node).pieces
    return Value(tuple(found))


def _deviated(value: Value) -> Value | None:
    """Return x if the value is ``(x - mean(x)) ** 2``, where the mean is over all pixels."""
    square = value.pieces[0].node
    if value != whole(square) or square.kind != "point" or square.details != Point("*"):
        return None
    distance = square.inputs[0].pieces[0].node
    if (
        square.inputs != (whole(distance), whole(distance))
        or distance.kind != "point"
        or distance.details != Point("-")
    ):
        return None
    x, mean = distance.inputs
    if any(node.kind != "statistic" or node.details is not _mean_of for node in mean.nodes):
        return None
    of = tuple(node.inputs[0].pieces[0].node.inputs[0].pieces[0] for node in mean.nodes)
    return (
        x
        if of == x.pieces and mean.pieces == tuple(piece for node in mean.nodes for piece in whole(node).pieces)
        else None
    )


def length(tracer: Tracer, it: Operator) -> list[Value]:
    """Translate the length of the vector of channels of each pixel."""
    value, dims = tracer.operand(it.arguments["self"]), it.arguments["dim"]
    if not value.in_maps:
        return by_torch(tracer, it)
    if it.arguments["ord"] != 2 or list(dims or []) != [1] or not it.arguments["keepdim"]:
        raise Unsupported("this vector norm")
    return [whole(tracer.node("length", it.shape, tracer.together(value)))]
