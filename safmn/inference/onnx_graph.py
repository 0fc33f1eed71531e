"""A network as an ONNX graph of any batch, height and width.

PyTorch's TorchScript-based exporter is used, not the one based on ``torch.export``: both give the same dynamic graph,
but this one takes seconds instead of a minute, and it needs no package beside onnx.
"""

from __future__ import annotations

import io
import warnings

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
