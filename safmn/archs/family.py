"""The SAFMN family: the networks that weight recognition, the tests and the tables iterate over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from torch import nn

from safmn.archs.shapes import Shapes
from safmn.registry import ARCH_REGISTRY

Arguments = dict[str, Any]


class Member(Protocol):
    """The interface of a network of the family.

    Its instances have the attributes ``scale``, ``window`` and ``halo``. Two things are optional. With a method
    ``stages``, images are streamed exactly and in little memory (:mod:`safmn.archs.stages`). If the native kernels know
    all its operators, or have a program for it, it runs several times as fast on CPUs
    (:mod:`safmn.kernels.cpu.programs`).

    Attributes:
        small: arguments of a small network, for tests.
        sizes: the published sizes: name in tables -> arguments.
    """

    small: ClassVar[Arguments]
    sizes: ClassVar[Mapping[str, Arguments]]

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> Arguments | None:
        """Return the constructor's arguments, read from a state dict's shapes; None if they are another network's."""


FAMILY: list[type[Any]] = []
"""The networks, in the order in which they were registered."""

Network = TypeVar("Network", bound=type[nn.Module])


def family_member(*, small: Arguments, sizes: Mapping[str, Arguments]) -> Callable[[Network], Network]:
    """Register a network in BasicSR's ``ARCH_REGISTRY`` and in the family. See :class:`Member`."""

    def register(network: Network) -> Network:
        network.small, network.sizes = small, sizes  # type: ignore[attr-defined]
        FAMILY.append(network)
        registered: Network = ARCH_REGISTRY.register()(network)
        return network if registered is None else registered

    return register
