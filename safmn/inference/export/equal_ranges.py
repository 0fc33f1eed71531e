"""Share the range of a convolution's input channels with its weights, before both are quantised.

All channels of an input have one scale in 8 bits. A channel with small values then gets few levels, and a channel with
large ones is what decides the range. Dividing channel c by f[c] and multiplying the weights for it by f[c] changes
nothing in float32. With f = sqrt(range of the channel / range of its weights) both are equally easy to quantise
(SmoothQuant, Xiao et al., ICML 2023, arXiv 2211.10438, with alpha = 0.5).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from safmn.inference.onnx_graph import INPUT
from safmn.value_types import Array


def equalise(model: Any, layers: Sequence[str], inputs: Sequence[Array]) -> None:
    """Change ``model`` (ONNX) so that these convolutions have inputs and weights of equal ranges; its output stays.

    The division becomes part of the factors and offsets of a norm before the convolution. Without one, a product is
    inserted.

    Args:
        model: the network in float32.
        layers: names of convolutions without groups.
        inputs: images for measuring the ranges, (1, 3, h, w).
    """
    graph = _Graph(model)
    convolutions = [node for node in model.graph.node if node.name in set(layers)]
    ranges = _ranges(model, {node.input[0] for node in convolutions}, inputs)
    for node in convolutions:
        weights = graph.value(node.input[1])
        factors = _factors(ranges[node.input[0]], np.abs(weights).max(axis=(0, 2, 3)))  # (in,)
        column = factors[:, None, None]
        affine = graph.affine_before(node)
        for operation, constant in affine:
            graph.replace(operation, constant, graph.value(constant) / column)
        if not affine:
            graph.multiply_input(node, 1 / column)
        graph.replace(node, node.input[1], weights * column)


def _factors(activations: Array, weights: Array) -> Array:
    """Return the factor of each channel; 1 for a channel that is always zero, or that no output uses."""
    used = (activations > 0) & (weights > 0)
    factors = np.ones(len(weights), np.float32)
    factors[used] = np.sqrt(activations[used] / weights[used])
    factors[used] /= np.exp(np.log(factors[used]).mean()) if used.any() else 1
    return factors


def _ranges(model: Any, names: set[str], inputs: Sequence[Array]) -> dict[str, Array]:
    """Return the largest absolute value of each channel of these tensors."""
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    order = sorted(names)
    known = {output.name for output in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in order if name not in known)
    session = runtime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    largest: dict[str, Array] = {}
    for image in inputs:
        for name, value in zip(order, session.run(order, {INPUT: image}), strict=True):
            here = np.abs(value).max(axis=(0, 2, 3))
            largest[name] = np.maximum(largest.get(name, here), here)
    return largest


class _Graph:
    """A graph with its constants and the producers and users of its tensors."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._tools = importlib.import_module("onnx").numpy_helper
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._producers = {output: node for node in self._graph.node for output in node.output}
        self._uses: dict[str, int] = {output.name: 1 for output in self._graph.output}
        for node in self._graph.node:
            for name in node.input:
                self._uses[name] = self._uses.get(name, 0) + 1

    def value(self, name: str) -> Array:
        """Return a constant."""
        array: Array = self._tools.to_array(self._constants[name])
        return array

    def replace(self, node: Any, name: str, value: Array) -> None:
        """Give a node another constant instead of the one of this name, which others may share."""
        new = self._new_constant(f"{node.name}/equalised/{name}", value)
        node.input[list(node.input).index(name)] = new
        self._uses[name] -= 1
        if not self._uses[name]:
            self._graph.initializer.remove(self._constants.pop(name))

    def affine_before(self, node: Any) -> tuple[tuple[Any, str], ...]:
        """Return product and sum of a chain x * w + b that only feeds this convolution, each with its constant.

        The result is empty if there is no such chain.
        """
        addition = self._only("Add", node.input[0], node)
        if addition is None:
            return ()
        product = self._only("Mul", next(each for each in addition[0].input if each != addition[1]), node)
        return () if product is None else (product, addition)

    def _only(self, kind: str, name: str, node: Any) -> tuple[Any, str] | None:
        """Return the operation that makes ``name``, which is used once, and its constant for each channel."""
        producer = self._producers.get(name)
        if producer is None or producer.op_type != kind or self._uses[name] != 1:
            return None
        shape = (self.value(node.input[1]).shape[1], 1, 1)
        constants = [each for each in producer.input if each in self._constants]
        if len(constants) != 1 or self.value(constants[0]).shape != shape:
            return None
        return producer, constants[0]

    def multiply_input(self, node: Any, factors: Array) -> None:
        """Insert a product before a convolution."""
        onnx = importlib.import_module("onnx")
        constant, scaled = self._new_constant(f"{node.name}/equalised/factors", factors), f"{node.name}/equalised"
        product = onnx.helper.make_node("Mul", [node.input[0], constant], [scaled], name=f"{node.name}/equalised/Mul")
        self._graph.node.insert([each.name for each in self._graph.node].index(node.name), product)
        node.input[0] = scaled

    def _new_constant(self, name: str, value: Array) -> str:
        self._graph.initializer.append(self._tools.from_array(value.astype(np.float32), name))
        self._constants[name], self._uses[name] = self._graph.initializer[-1], 1
        return name
