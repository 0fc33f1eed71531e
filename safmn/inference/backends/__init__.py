"""Back ends: different engines that run a network through one interface.

A back end maps (B, C, h, w) float32 to float32, whatever its internal precision; h and w are multiples of the network's
window.

>>> backend = make_backend("openvino", network)
>>> y = backend(x)
"""

from __future__ import annotations

import importlib

import torch
from torch import nn

from safmn.errors import OptionError
from safmn.inference.backends.base import BACKENDS, PRECISIONS, Backend, check_precision
from safmn.inference.choices import BACKEND_MODULES, unknown_backend
from safmn.runtime.threads import BUILDING

__all__ = ["NAMES", "PRECISIONS", "Backend", "available_backends", "make_backend"]

for _module in dict.fromkeys(BACKEND_MODULES.values()):  # importing one registers its back ends
    importlib.import_module(f"safmn.inference.backends.{_module}")

NAMES = ("auto", *sorted(name for name in BACKENDS if name != "auto"))
"""All names that :func:`make_backend` accepts."""


def available_backends(device: str | torch.device = "cpu") -> dict[str, str | None]:
    """Return each back end's name with None if it can be used on ``device``, or else the reason and what to do."""
    return {name: backend.missing(torch.device(device)) for name, backend in BACKENDS.items()}


def make_backend(
    name: str, network: nn.Module, *, device: str | torch.device = "cpu", precision: str = "fp32"
) -> Backend:
    """Return a back end that runs ``network``. The network itself does not change.

    Any number of threads may call this at the same time; the back ends are built one after another.

    Args:
        name: one of :data:`NAMES`. "auto" chooses at its first input, whose size should be typical (a tile of an
            image); it takes a fast back end that gives the result of eager float32.
        network: maps (B, C, h, w) to a tensor. C is its ``in_channels`` (default 3); h and w are multiples of its
            ``window`` (default 1). It may be a single stage of :mod:`safmn.archs.stages`.
        device: the device of inputs and outputs.
        precision: "fp32"; "bf16": convolutions between features in bfloat16, everything else in float32; "fp16" (GPUs):
            everything in float16.

    Raises:
        OptionError: the back end or precision does not exist, is not installed (the message says how to install it),
            or does not support this network, device or precision.
    """
    device = torch.device(device)
    if name not in BACKENDS:
        raise unknown_backend(name, NAMES)
    check_precision(precision, device)
    backend = BACKENDS[name]
    problem = backend.missing(device) or backend.unfit(network, precision)
    if problem:
        raise OptionError(f"back end {name!r} cannot be used: {problem}.")
    with BUILDING, torch.inference_mode(False):  # the caller may have enabled it, but the back end is used outside, too
        return backend(network, device=device, precision=precision)
