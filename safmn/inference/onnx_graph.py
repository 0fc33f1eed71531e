"""A network as an ONNX graph of any batch, height and width.

PyTorch's TorchScript-based exporter is used, not the one based on ``torch.export``: both give the same dynamic graph,
but this one takes seconds instead of a minute, and it needs no package beside onnx.
"""

from __future__ import annotations

import importlib
import io
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safmn.runtime.threads import BUILDING

OPSET = 18
"""Supported by ONNX Runtime 1.14, OpenVINO 2023.0 and TensorRT 9 and later."""
INPUT, OUTPUT = "input", "output"


def onnx_bytes(network: nn.Module, example: Tensor, *, dynamic: bool = True) -> bytes:
    """The serialised graph of ``network``, from ``input`` (B, C, h, w) to ``output``.

    Args:
        network: on the CPU, in evaluation mode; its forward must not depend on the size of ``example`` other than
            through tensor operations.
        example: (B, C, h, w), what the network is traced with.
        dynamic: whether batch, height and width are free; otherwise they are those of ``example``.
    """
    axes = {0: "batch", 2: "height", 3: "width"}
    buffer = io.BytesIO()
    with BUILDING, warnings.catch_warnings():  # neither the exporter nor the filters of warnings are safe for threads
        # That this exporter is the older one, and that sizes were compared while tracing (the caller answers for that).
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1", UserWarning)  # :func:`folded` does it
        torch.onnx.export(
            network,
            (example,),
            buffer,  # type: ignore[arg-type]  # typed for the newer exporter
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: axes, OUTPUT: {0: "batch", 2: "out_height", 3: "out_width"}} if dynamic else None,
        )
    return buffer.getvalue()


def folded(content: bytes) -> bytes:
    """A serialised graph of one size with everything computed that does not depend on the image.

    The exporter leaves arithmetic on shapes, which OpenCV's DNN and others that want plain layers cannot load. Names of
    inputs and outputs stay.
    """
    onnx = importlib.import_module("onnx")
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), data_prop=True)
    graph = model.graph
    shapes = {value.name: _shape(value) for value in [*graph.input, *graph.value_info]}
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    same: dict[str, str] = {}
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        elif (values := _computed(onnx, node, known, shapes)) is not None:
            known.update(values)
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input} | outputs
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(onnx.numpy_helper.from_array(known[name], name) for name in known if name in used)
    serialised: bytes = model.SerializeToString()
    return serialised


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None where it is not known."""
    tensor = value.type.tensor_type
    lengths = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    return None if not tensor.HasField("shape") or None in lengths else tuple(lengths)  # type: ignore[arg-type]


def _computed(
    onnx: Any, node: Any, known: dict[str, Any], shapes: dict[str, tuple[int, ...] | None]
) -> dict[str, Any] | None:
    """The values of a node's outputs; None where they depend on the image."""
    if node.op_type == "Shape" and shapes.get(node.input[0]) is not None and not node.attribute:
        return {node.output[0]: np.array(shapes[node.input[0]], np.int64)}
    if any(name and name not in known for name in node.input):
        return None
    names = [name for name in node.input if name]
    graph = onnx.helper.make_graph(
        [node],
        "one_node",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(names)],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    results = (
        importlib.import_module("onnx.reference")
        .ReferenceEvaluator(model)
        .run(None, {name: known[name] for name in names})
    )
    return dict(zip(node.output, map(np.asarray, results), strict=True))
