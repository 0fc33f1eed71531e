"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A moving average of a network's weights: ``average = decay * average + (1 - decay) * weights``.

    As in BasicSR, parameters are averaged and buffers (for example of batch normalisation) are copied.

    Args:
        network: the network whose weights are averaged.
        decay: weight of the old average in each update.
        warmup: let the decay grow with the iteration as ``(1 + i) / (10 + i)`` until it reaches ``decay``. Without it
            the initial weights keep a share of ``decay ** iterations``, which spoils the average in a run of a few
            thousand iterations.
        average: a copy of ``network`` that becomes the average; None to make one.
    """

    def __init__(
        self, network: nn.Module, decay: float, *, warmup: bool = False, average: nn.Module | None = None
    ) -> None:
        self.decay = decay
        self.warmup = warmup
        self.network = (copy.deepcopy(network) if average is None else average).eval().requires_grad_(False)
        self._averages: list[Tensor] = list(self.network.parameters())
        self._weights = [parameter.detach() for parameter in network.parameters()]
        self._buffers = list(zip(self.network.buffers(), network.buffers(), strict=True))

    @torch.no_grad()
    def update(self, iteration: int | Tensor, *, skip: Tensor | None = None) -> None:
        """Update the average with the network's current weights.

        Args:
            iteration: counted from 1. It may be a scalar on the device only together with ``skip``.
            skip: a scalar on the device; if it is 1, the averaged parameters do not change. The host does not wait
                for it.
        """
        decay = self._decay(iteration)
        if skip is None:
            torch._foreach_mul_(self._averages, decay)  # type: ignore[arg-type]
            torch._foreach_add_(self._averages, self._weights, alpha=1 - decay)  # type: ignore[arg-type]
        else:
            share = (1 - decay) * (1 - skip)
            torch._foreach_mul_(self._averages, 1 - share)
            torch._foreach_add_(self._averages, torch._foreach_mul(self._weights, share))
        for copied, current in self._buffers:
            copied.copy_(current)

    def _decay(self, iteration: int | Tensor) -> float | Tensor:
        if not self.warmup:
            return self.decay
        decay = (1 + iteration) / (10 + iteration)
        return decay.clamp(max=self.decay) if isinstance(decay, Tensor) else min(self.decay, decay)
