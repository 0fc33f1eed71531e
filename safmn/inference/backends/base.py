"""What a back end is."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from safmn.errors import OptionError
from safmn.runtime.threads import keep_in_forks

PRECISIONS = ("fp32", "bf16", "fp16")


class Backend(ABC):
    """Runs one network on one device. Any number of threads may call it at the same time, with different sizes.

    Register a subclass with :func:`register_backend`. A back end belongs to the process that made it: processes forked
    later make their own (:class:`safmn.Upscaler` does so).

    Attributes:
        name: how a person asks for it.
        tried_by_auto: device type -> place in the order in which "auto" tries back ends there, the lowest first. What
            takes a minute or more to start is left out, and used only when it is asked for by name.
        precision: "fp32", "bf16" or "fp16"; input and output are float32 in any case.
    """

    name: str
    tried_by_auto: ClassVar[Mapping[str, int]] = {}

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        self.device = device
        self.precision = precision
        self.channels = input_channels(network)
        self.window = int(getattr(network, "window", 1))
        keep_in_forks(self)

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: (B, C, h, w) float32 on the back end's device; h and w are multiples of the network's window.

        Returns:
            What the network makes of it, float32, on the same device, not clamped, not overwritten later.
        """

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """Why this back end cannot be used on ``device``, and what to do; None where it can."""
        return None

    @classmethod
    def unfit(cls, network: nn.Module, precision: str) -> str | None:
        """Why this back end cannot run ``network`` in ``precision``; None where it can."""
        return None


BACKENDS: dict[str, type[Backend]] = {}
"""Every registered back end, by name."""


def register_backend(kind: type[Backend]) -> type[Backend]:
    """Make a back end known by its name. A decorator."""
    BACKENDS[kind.name] = kind
    return kind


def candidates_of_auto(device_type: str) -> list[type[Backend]]:
    """The back ends that "auto" tries on a type of device (``cpu``, ``cuda``), in this order."""
    tried = [kind for kind in BACKENDS.values() if device_type in kind.tried_by_auto]
    return sorted(tried, key=lambda kind: kind.tried_by_auto[device_type])


def input_channels(network: nn.Module) -> int:
    """Channels that a network reads: 3, or what its ``in_channels`` says (stages of :mod:`safmn.archs.stages`)."""
    return int(getattr(network, "in_channels", 3))


def example_input(network: nn.Module) -> Tensor:
    """A small input to trace a network with: (1, C, h, w), whole windows along each side, on the network's device."""
    parameter = next(network.parameters(), torch.empty(0))
    window = int(getattr(network, "window", 1))
    side = 2 * window * -(-8 // window)  # 16 at least
    return torch.rand(1, input_channels(network), side, side, device=parameter.device)


def package_missing(package: str, extra: str) -> str | None:
    """The sentence that says how to install an optional package; None where it is installed."""
    if importlib.util.find_spec(package) is not None:
        return None
    return f"the package {package} is not installed: in a clone of SAFMN, pip install '.[{extra}]'"


def check_precision(precision: str, device: torch.device) -> None:
    """Raise OptionError where ``device`` cannot compute in ``precision``."""
    if precision not in PRECISIONS:
        raise OptionError(f"precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise OptionError("precision 'fp16' is for GPUs; on the CPU choose bf16 or fp32")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise OptionError("precision 'bf16' is not supported by this GPU; choose fp16 or fp32")
