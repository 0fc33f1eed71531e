"""What runs a network: one interface, many engines.

A back end maps (B, C, h, w) float32 to float32, whatever it does inside; h and w are multiples of the network's window.

>>> backend = make_backend("openvino", network)
>>> y = backend(x)
"""

from __future__ import annotations

import torch
from torch import nn

from safmn.errors import OptionError, did_you_mean
from safmn.inference.backends import auto as auto
from safmn.inference.backends import native_backend as native_backend
from safmn.inference.backends import onnx_backends as onnx_backends
from safmn.inference.backends import openvino_backend as openvino_backend
from safmn.inference.backends import torch_backends as torch_backends
from safmn.inference.backends.base import BACKENDS, PRECISIONS, Backend, check_precision
from safmn.runtime.threads import BUILDING

__all__ = ["NAMES", "PRECISIONS", "Backend", "available_backends", "make_backend"]

NAMES = ("auto", *sorted(name for name in BACKENDS if name != "auto"))
"""All names that :func:`make_backend` knows."""


def available_backends(device: str | torch.device = "cpu") -> dict[str, str | None]:
    """Every back end by name, with None where it can be used on ``device`` and otherwise why not and what to do."""
    return {name: backend.missing(torch.device(device)) for name, backend in BACKENDS.items()}


def make_backend(
    name: str, network: nn.Module, *, device: str | torch.device = "cpu", precision: str = "fp32"
) -> Backend:
    """Make ``network`` ready to run. The network itself is left as it is.

    Any number of threads may make back ends at the same time; they are made one after the other.

    Args:
        name: one of :data:`NAMES`. "auto" decides on its first input, which should be typical (a tile of an image):
            the fastest one that gives the result of eager float32.
        network: maps (B, C, h, w) to a tensor; C is 3 unless its ``in_channels`` says otherwise; h and w are multiples
            of its ``window`` (1 where it has none). Also a single stage of :mod:`safmn.archs.stages`.
        device: where inputs and outputs live.
        precision: "fp32"; "bf16", where convolutions between features are computed in bfloat16 and all else in
            float32; "fp16" (GPUs), all in float16.

    Raises:
        OptionError: no such back end or precision, it is not installed (the message says how to), or it cannot do this.
    """
    device = torch.device(device)
    if name not in BACKENDS:
        raise OptionError(f"no back end {name!r}.{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}.")
    check_precision(precision, device)
    backend = BACKENDS[name]
    problem = backend.missing(device) or backend.unfit(network, precision)
    if problem:
        raise OptionError(f"back end {name!r} cannot be used: {problem}.")
    with BUILDING, torch.inference_mode(False):  # the caller may be in it, and what is made here outlives that
        return backend(network, device=device, precision=precision)
