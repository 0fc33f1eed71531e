"""Weights as the kernels take them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from safmn.kernels.cpu.layers import packed, winograd_taps
from safmn.kernels.cpu.planning.graph import Node, Weights


class Packing:
    """Weights as the kernels take them, packed once.

    Args:
        block_size: see :class:`safmn.kernels.cpu.inference.Kernels`.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._packed: dict[tuple[object, ...], tuple[list[Weights], Tensor]] = {}

    def once(self, kind: str, weights: list[Weights], make: Callable[[], Tensor]) -> Tensor:
        """Return ``make()`` for these weights, or the result of an earlier call."""
        key = (kind, *(part for each in weights for part in (id(each.weight), id(each.bias))))
        if key not in self._packed:
            self._packed[key] = (weights, make())  # the weights are kept, so that no id is used twice
        return self._packed[key][1]

    def taps(self, weights: list[Weights], half: bool) -> Tensor:
        """Return the transformed filters of several convolutions, one after the other."""

        def make() -> Tensor:
            return packed(winograd_taps(torch.cat([each.weight for each in weights])), self.block_size, half)

        return self.once(f"taps {half}", weights, make)

    def bias(self, weights: list[Weights]) -> Tensor:
        """Return their biases."""
        return self.once("bias", weights, lambda: torch.cat([_bias(each) for each in weights]))

    def flat(self, node: Node) -> tuple[Tensor, int]:
        """Return the weights of a node as one row of numbers, and where its bias begins."""
        given: Weights = node.details

        def make() -> Tensor:
            if node.kind == "conv1":
                matrix = packed(given.weight[:, None, :, 0, 0], self.block_size, half=False).flatten()
                bias = nn.functional.pad(_bias(given), (0, -len(given.weight) % self.block_size))
            else:
                matrix, bias = given.weight.to(torch.float32).flatten(), _bias(given)
            return torch.cat([matrix, bias])

        row = self.once(f"flat {node.kind}", [given], make)
        outputs = len(given.weight)
        return row, len(row) - (-(-outputs // self.block_size) * self.block_size if node.kind == "conv1" else outputs)


def _bias(given: Weights) -> Tensor:
    count = len(given.weight)
    return torch.zeros(count) if given.bias is None else given.bias.to(torch.float32)
