"""Bounds what another package builds from names and shapes: a file of 1 kB must not become a network of 10 GB."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SPARE, _TIMES = 2**30, 4  # bytes that building may take: this many, and so many times those of the weights
_UNNAMED = 16  # so many layers without weights (activations, say) may stand beside each tensor
_FEW = 64


class NetworkTooLarge(ValueError):
    """The network would be far larger than the weights that it is to be built for."""


class _Bounded(TorchDispatchMode):
    """Counts the bytes of all tensors that are made, before they are."""

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
                f"its names and shapes ask for a network of more than {self.allowed / 1e6:,.0f} MB, far more than its "
                "weights are: it is damaged, or made to exhaust the memory."
            )


def _makes_tensors(func: Any) -> bool:
    return func.overloadpacket.__name__ in {"empty", "empty_strided", "zeros", "ones", "full", "rand", "randn"}


def check_layers(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse names that number a layer far beyond the number of tensors: so many layers would be built.

    Raises:
        NetworkTooLarge: names the number.
    """
    numbers = (int(part) for name in state_dict for part in re.findall(r"(?<![^.])\d{1,18}(?![^.])", name))
    highest = max(numbers, default=0)
    if highest > _UNNAMED * len(state_dict) + _FEW:
        raise NetworkTooLarge(
            f"its names number a layer {highest}, but there are {len(state_dict)} tensors: not weights."
        )


@contextlib.contextmanager
def bounded_building(state_dict: Mapping[str, Tensor]) -> Iterator[None]:
    """Build a network for these weights within the block, and let it take no more memory than theirs warrants.

    Raises:
        NetworkTooLarge: it would.
    """
    own = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    with _Bounded(_SPARE + _TIMES * own):
        yield
