"""What is timed: a network on one back end and in one precision, and the protocol of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from safmn.archs.peers import folded
from safmn.errors import OptionError, UserError
from safmn.evaluation.costs import OUTPUT, windows_of
from safmn.evaluation.methods import Method, open_methods
from safmn.evaluation.time_cache import TimeCache
from safmn.inference.backends import NAMES, available_backends, make_backend
from safmn.inference.backends.base import BACKENDS
from safmn.inference.backends.remembered import question
from safmn.inference.samples import made_up_photographs

RUNS = 50
WARM_UP = 5
EAGER = "eager"


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Attributes:
        device: device of the networks.
        runs: timed runs of each side.
        warm_up: runs before them.
        output: height and width of the output.
        memory: measure memory, too.
        remember: use times that were measured before; new ones are kept in any case.
    """

    device: torch.device
    runs: int = RUNS
    warm_up: int = WARM_UP
    output: tuple[int, int] = OUTPUT
    memory: bool = True
    remember: bool = True


@dataclass(frozen=True)
class Side:
    """A network on one back end and in one precision.

    Attributes:
        method: the network.
        backend: name of the back end.
        precision: the precision.
        protocol: how to measure.
    """

    method: Method
    backend: str
    precision: str
    protocol: Protocol

    @property
    def name(self) -> str:
        """Network, back end and precision."""
        return f"{self.method.label}, {self.backend}, {self.precision}"

    @cached_property
    def network(self) -> nn.Module:
        """The network in its form for inference, on the device.

        Raises:
            OptionError: the method is no network.
        """
        if self.method.network is None:
            raise OptionError("only networks can be timed")
        return folded(self.method.network).to(self.protocol.device)

    @cached_property
    def input(self) -> tuple[int, int]:
        """Height and width of the input, whole windows."""
        network = self.network
        window = windows_of(network)
        step = window if self.backend == EAGER else int(getattr(network, "window", window))
        height, width = (math.ceil(side / self.method.scale / step) * step for side in self.protocol.output)
        return height, width

    @cached_property
    def x(self) -> Tensor:
        """The input: a made-up photograph (1, 3, h, w)."""
        return made_up_photographs(*self.input)[:1].to(self.protocol.device)

    @cached_property
    def run(self) -> Callable[[Tensor], Tensor]:
        """The back end, which has run once, so that it has compiled what it compiles for a size.

        Raises:
            OptionError: the back end cannot be used, or the network fails.
        """
        device = self.protocol.device
        run = make_backend(self.backend, self.network, device=device, precision=self.precision)
        try:
            run(self.x)
        except UserError:
            raise
        except Exception as error:  # a user's network may raise any exception
            height, width = self.input
            raise OptionError(f"it fails on an image of {width}x{height}: {type(error).__name__}: {error}") from error
        return run

    @cached_property
    def kept(self) -> TimeCache:
        """The times of before, unless they are to be measured again, and those that are measured now."""
        found = TimeCache(self._question())
        if not self.protocol.remember:
            found.forget()
        return found

    def _question(self) -> dict[str, Any] | None:
        kinds = [BACKENDS[name] for name in NAMES if self.backend in (name, "auto") and name in BACKENDS]
        device = self.protocol.device
        asked = question(self.network, self.x, kinds, device=device, precision=self.precision)
        return None if asked is None else {**asked, "backend": self.backend, "input": self.input}


def sides_of(
    methods: Sequence[Method], protocol: Protocol, backends: Sequence[str], precisions: Sequence[str]
) -> list[Side]:
    """Return every combination of networks, back ends (``all``: those that can be used) and precisions."""
    if list(backends) == ["all"]:
        missing = available_backends(protocol.device)
        backends = [name for name in NAMES if name != "auto" and missing[name] is None]
    return [
        Side(method, backend, precision, protocol)
        for method in methods
        for backend in backends
        for precision in precisions
    ]


def with_values(method: Method) -> Method:
    """Return a method whose network can run: an untrained one gets random weights, which take as long as others."""
    network = method.network
    if network is None or not any(each.is_meta for each in (*network.parameters(), *network.buffers())):
        return method
    (opened,) = open_methods([method.text], scale=method.scale, with_values=True, tolerant=True)
    return opened
