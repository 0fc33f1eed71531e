"""The base class of all back ends, and their registry."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from safmn.errors import OptionError
from safmn.inference.choices import PRECISIONS
from safmn.runtime.threads import keep_in_forks
from safmn.system.extras import EXTRAS, pip_install


class Backend(ABC):
    """Runs one network on one device. Any number of threads may call it at the same time, with different sizes.

    Register a subclass with :func:`register_backend`. A back end belongs to the process that built it. Processes forked
    later need their own, which :class:`safmn.Upscaler` builds.

    Args:
        network: see :func:`safmn.inference.backends.make_backend`.
        device: the device of inputs and outputs.
        precision: "fp32", "bf16" or "fp16". Input and output are always float32.

    Attributes:
        name: the name that users give.
        tried_by_auto: device type -> position in the order in which "auto" tries back ends, lowest first. Back ends
            that take a minute or more to start are not tried, and run only if the user names them.
        follows_threads: whether a call uses as many threads as torch does in the calling thread, so that several calls
            at once, each with one thread, use the processor well.
        exact_areas: whether a part of an image, with the network's halo around it and both rounded to whole windows,
            gives exactly the values of the whole image.
        channels: channels of the input.
        window: the sides of the input are multiples of this.
    """

    name: str
    tried_by_auto: ClassVar[Mapping[str, int]] = {}
    follows_threads: bool = False
    exact_areas: bool = False

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
            The network's result, float32, on the same device, not clamped. Later calls do not overwrite it.
        """

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """Return why this back end cannot be used on ``device``, and what to do; None if it can."""
        return None

    @classmethod
    def unfit(cls, network: nn.Module, precision: str) -> str | None:
        """Return why this back end cannot run ``network`` in ``precision``; None if it can."""
        return None

    @classmethod
    def versions(cls) -> tuple[str, ...]:
        """Return the software that this back end needs besides torch and SAFMN. If it changes, "auto" chooses again."""
        return ()


BACKENDS: dict[str, type[Backend]] = {}
"""Every registered back end, by name."""


def register_backend(kind: type[Backend]) -> type[Backend]:
    """Class decorator: register a back end under its name."""
    BACKENDS[kind.name] = kind
    return kind


def candidates_of_auto(device_type: str) -> list[type[Backend]]:
    """Return the back ends that "auto" tries on a type of device (``cpu``, ``cuda``), in this order."""
    tried = [kind for kind in BACKENDS.values() if device_type in kind.tried_by_auto]
    return sorted(tried, key=lambda kind: kind.tried_by_auto[device_type])


def input_channels(network: nn.Module) -> int:
    """Return a network's input channels: its ``in_channels`` (stages of :mod:`safmn.archs.stages` have it), or 3."""
    return int(getattr(network, "in_channels", 3))


def example_input(network: nn.Module) -> Tensor:
    """Return a small input for tracing a network: (1, C, h, w), whole windows on each side, on the network's device."""
    parameter = next(network.parameters(), torch.empty(0))
    window = int(getattr(network, "window", 1))
    side = 2 * window * -(-8 // window)  # at least 16
    return torch.rand(1, input_channels(network), side, side, device=parameter.device)


def package_missing(package: str, extra: str) -> str | None:
    """Return a sentence that says how to install an optional package; None if it is installed."""
    if importlib.util.find_spec(package) is not None:
        return None
    return f"the package {package} is not installed: {pip_install(EXTRAS[extra].packages.values())}"


def installed_versions(*packages: str) -> tuple[str, ...]:
    """Return the version of each installed package of these, such as ``onnx 1.19.0``."""
    found = []
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return tuple(found)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise OptionError if ``precision`` does not exist or ``device`` cannot compute in it."""
    if precision not in PRECISIONS:
        raise OptionError(f"precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise OptionError("precision 'fp16' is for GPUs; on the CPU choose bf16 or fp32")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise OptionError("precision 'bf16' is not supported by this GPU; choose fp16 or fp32")
