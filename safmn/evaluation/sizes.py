"""The published sizes of networks, by the names that tables use: what a table can build without a weight file.

Networks declare their sizes themselves: :class:`safmn.archs.family.Member`, :class:`safmn.archs.peers.Peer`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from safmn.archs import FAMILY, PEERS
from safmn.registry import ARCH_REGISTRY, build, find, names

_SCALE_ARGUMENTS = ("upscaling_factor", "upscale", "upsampling", "scale", "scale_factor")


@dataclass(frozen=True)
class Size:
    """A published size of a network.

    Attributes:
        method: name of the row in tables, such as ``SAFMN-L``.
        scale: output pixels per input pixel, along each side; 1 for networks that keep the size.
        type: the registered name.
        arguments: the constructor's arguments.
    """

    method: str
    scale: int
    type: str
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name with its scale, such as ``SAFMN-L x4``."""
        return self.method if self.scale == 1 else f"{self.method} x{self.scale}"

    def build(self, *, with_values: bool = False) -> nn.Module:
        """Build the network in evaluation mode: on the meta device if possible, or with random values from seed 0."""
        section = {"type": self.type, **self.arguments}
        kind = find(ARCH_REGISTRY, self.type)
        ours = kind in FAMILY or any(kind is each.network for each in PEERS.values())
        foreign = not ours  # its constructor may need real tensors
        if with_values or foreign:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network: nn.Module = build(ARCH_REGISTRY, section)
        else:
            with torch.device("meta"):
                network = build(ARCH_REGISTRY, section)
        return network.eval().requires_grad_(False)


@functools.cache
def sizes() -> tuple[Size, ...]:
    """Return the published sizes of all networks: the SAFMN family, then the others (without BasicSR, not its own)."""
    return (*_of_family(), *_of_peers())


def _of_family() -> Iterator[Size]:
    for network in FAMILY:
        for name, arguments in network.sizes.items():
            method, scale = re.fullmatch(r"(.+?)(?: x(\d+))?", name).groups()  # type: ignore[union-attr]
            yield Size(method, int(scale or 1), network.__name__, arguments)


def _of_peers() -> Iterator[Size]:
    known = names(ARCH_REGISTRY)
    for name, declared in PEERS.items():
        if name in known:
            for method in declared.sizes:
                for scale in declared.scales_of(method):
                    yield Size(method, scale, name, declared.arguments(method, scale))


def size_named(name: str, scale: int | None = None) -> Size | None:
    """Return the size of a name in tables (``SAFMN-L``, with ``scale``) or with its scale (``SAFMN-L x4``)."""
    for size in sizes():
        if size.name.lower() == name.lower() or (size.method.lower() == name.lower() and scale in (None, size.scale)):
            return size
    return None


def published_size(section: Mapping[str, Any]) -> Size | None:
    """Return the size that a ``network_g`` section describes, with or without its default arguments; None for others.

    The scale of the section need not be a published one: the result is then the size at another scale.
    """
    same_type = [size for size in sizes() if size.type == section.get("type")]
    if not same_type:
        return None
    parameters = inspect.signature(find(ARCH_REGISTRY, section["type"])).parameters
    scales = [name for name in _SCALE_ARGUMENTS if name in parameters]
    wanted = _complete(section, parameters)
    found = None
    for size in same_type:
        given = _complete(size.arguments, parameters)
        if all(_plain(given.get(key)) == _plain(wanted.get(key)) for key in {*given, *wanted} - {*scales}):
            if all(given.get(key) == wanted.get(key) for key in scales):
                return size
            found = found or size
    return found


def _complete(section: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the arguments of a section together with the defaults of those that it leaves out."""
    defaults = {
        name: each.default
        for name, each in parameters.items()
        if each.default is not inspect.Parameter.empty and name != "img_size"  # SwinIR: the size of its stored masks
    }
    return {**defaults, **{key: value for key, value in section.items() if key not in ("type", "img_size")}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
