"""Limit the networks that another package builds from names and shapes: 1 kB of file must not become 10 GB."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SPARE, _TIMES = 2**30, 4  # building may take this many bytes plus this multiple of the weights' bytes
_UNNAMED = 16  # layers without weights, such as activations, that are allowed per tensor
_FEW = 64  # layers that are always allowed


class NetworkTooLarge(ValueError):
    """The network would be far larger than its weights."""


class _Bounded(TorchDispatchMode):
    """Counts the bytes of new tensors before they are allocated, where possible."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self.allowed, self.made = allowed, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _makes_tensors(func) and args and isinstance(args[0], (list, tuple, torch.Size)):
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self._count(math.prod(args[0]) * dtype.itemsize)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        inputs = [value for value in args if isinstance(value, Tensor)]
        if isinstance(result, Tensor) and not any(result.numel() <= value.numel() for value in inputs):
            self._count(result.untyped_storage().nbytes())
        return result

    def _count(self, size: int) -> None:
        self.made += size
        if self.made > self.allowed:
            raise NetworkTooLarge(
                f"its names and shapes describe a network of more than {self.allowed / 1e6:,.0f} MB, far larger than "
                "its weights. The file is damaged, or made to exhaust the memory."
            )


def _makes_tensors(func: Any) -> bool:
    return func.overloadpacket.__name__ in {"empty", "empty_strided", "zeros", "ones", "full", "rand", "randn"}


def check_layers(state_dict: Mapping[str, Tensor]) -> None:
    """Check that no name contains a layer number far above the number of tensors; all those layers would be built.

    Raises:
        NetworkTooLarge: a name does; the message names the number.
    """
    numbers = (int(part) for name in state_dict for part in re.findall(r"(?<![^.])\d{1,18}(?![^.])", name))
    highest = max(numbers, default=0)
    if highest > _UNNAMED * len(state_dict) + _FEW:
        raise NetworkTooLarge(
            f"not weights: a name has layer number {highest}, but there are only {len(state_dict)} tensors."
        )


@contextlib.contextmanager
def bounded_building(state_dict: Mapping[str, Tensor]) -> Iterator[None]:
    """Limit the memory that the block takes to build a network for these weights.

    Raises:
        NetworkTooLarge: the network needs far more memory than its weights.
    """
    own = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    with _Bounded(_SPARE + _TIMES * own):
        yield
