"""Convert a network to an ONNX graph that takes any batch size, height and width.

PyTorch's exporter based on TorchScript is used, not the one based on ``torch.export``. Both give the same dynamic
graph, but this one takes seconds instead of a minute and needs no package besides onnx.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safmn.runtime.threads import BUILDING

OPSET = 18
"""ONNX operator set; supported by ONNX Runtime 1.14, OpenVINO 2023.0, TensorRT 9 and later versions."""
INPUT, OUTPUT = "input", "output"


def onnx_bytes(network: nn.Module, example: Tensor, *, dynamic: bool = True) -> bytes:
    """Return the serialised graph of ``network``, from ``input`` (B, C, h, w) to ``output``.

    Args:
        network: on the CPU, in evaluation mode. Its forward may depend on the size of the input only through tensor
            operations.
        example: (B, C, h, w), the input for tracing.
        dynamic: True: batch size, height and width are free. False: they are those of ``example``.
    """
    axes = {0: "batch", 2: "height", 3: "width"}
    buffer = io.BytesIO()
    with BUILDING, _silent(), warnings.catch_warnings():  # the exporter and the warning filters are not thread-safe
        warnings.simplefilter("ignore", DeprecationWarning)  # this exporter is deprecated
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes compared while tracing: the caller checks them
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


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter from printing the whole graph before it raises an exception, which it does by mistake."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def folded(content: bytes) -> bytes:
    """Return a serialised graph of a fixed size with everything precomputed that does not depend on the image.

    The exporter leaves arithmetic on shapes, which OpenCV's DNN and other programs that need plain layers cannot load.
    The names of inputs and outputs do not change.
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
    """Return the shape of a tensor; None if it is not known."""
    tensor = value.type.tensor_type
    lengths = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    return None if not tensor.HasField("shape") or None in lengths else tuple(lengths)  # type: ignore[arg-type]


def _computed(
    onnx: Any, node: Any, known: dict[str, Any], shapes: dict[str, tuple[int, ...] | None]
) -> dict[str, Any] | None:
    """Return the values of a node's outputs by name; None if they depend on the image."""
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
