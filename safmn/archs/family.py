"""The SAFMN family: the networks that weight files are recognised as, and that tests and tables go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from torch import nn

from safmn.archs.shapes import Shapes
from safmn.registry import ARCH_REGISTRY

Arguments = dict[str, Any]


class Member(Protocol):
    """What a network of the family says about itself.

    ``scale``, ``window`` and ``halo`` are attributes of its instances. Two things are optional: a method ``stages``
    lets images be streamed through little memory, exactly (:mod:`safmn.archs.stages`); a program of the native kernels
    makes it several times as fast on CPUs (:data:`safmn.kernels.cpu.programs.PROGRAMS`).

    Attributes:
        small: arguments of a small network, for tests.
        sizes: name in tables -> arguments, of the sizes that were published.
    """

    small: ClassVar[Arguments]
    sizes: ClassVar[Mapping[str, Arguments]]

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> Arguments | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""


FAMILY: list[type[Any]] = []
"""The networks, in the order of their registration."""

Network = TypeVar("Network", bound=type[nn.Module])


def family_member(*, small: Arguments, sizes: Mapping[str, Arguments]) -> Callable[[Network], Network]:
    """Register a network in BasicSR's ``ARCH_REGISTRY`` and in the family. See :class:`Member`."""

    def register(network: Network) -> Network:
        network.small, network.sizes = small, sizes  # type: ignore[attr-defined]
        FAMILY.append(network)
        registered: Network = ARCH_REGISTRY.register()(network)
        return network if registered is None else registered

    return register
