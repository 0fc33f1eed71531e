"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A network whose weights follow those of another: ``average = decay * average + (1 - decay) * weights``.

    As in BasicSR the average covers the parameters; buffers (of a batch normalisation, say) are copied.

    Args:
        network: what is followed.
        decay: share of the average that stays at each update.
        warmup: let the decay grow with the iteration as ``(1 + i) / (10 + i)`` until it reaches ``decay``. Without it
            the start weighs ``decay ** iterations``, which spoils the average of a run of a few thousand iterations.
        average: a copy of ``network`` that becomes the average; None: it is made here.
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
        """Take in the network's weights of this iteration.

        Args:
            iteration: counted from 1; as a scalar on the device only together with ``skip``.
            skip: scalar on the device; where it is 1 the average stays as it is. The host does not wait for it.
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
