"""Declare a network of others: what the framework must know about it besides its code.

The networks of the field (RFDN, PAN, VDSR, ...) do not all take an RGB image in [0, 1]. Some take the Y channel, some
an image that was enlarged first, some values in [0, 255]. A network says so once, in its :class:`Form`, and every
command follows it through :func:`safmn.archs.peers.form.in_form`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torch import nn

from safmn.archs.shapes import Shapes
from safmn.registry import ARCH_REGISTRY

Arguments = dict[str, Any]
ArgumentsFrom = Callable[[Shapes], Arguments | None]


@dataclass(frozen=True)
class Paper:
    """Where a network was published.

    Attributes:
        authors: family names, separated by commas.
        title: the paper's title.
        venue: conference or journal with the year, such as ``CVPR 2016``.
        arxiv: number on arXiv; empty if it is not there.
    """

    authors: str
    title: str
    venue: str
    arxiv: str = ""


@dataclass(frozen=True)
class Code:
    """The authors' code.

    Attributes:
        repository: owner and name on GitHub.
        licence: SPDX name, or ``none`` if the repository has no licence.
    """

    repository: str
    licence: str


@dataclass(frozen=True)
class Form:
    """The form in which a network takes its image and gives its result.

    Attributes:
        channels: ``RGB``, or ``Y`` (BT.601, 16/255 to 235/255).
        enlarged: the image is enlarged bicubically to the output's size first.
        largest: the value of white: 1, or 255 for networks that work in [0, 255].
        smallest: smallest height and width that the network takes, in LR pixels.
        multiple: height and width in LR pixels must be multiples of this.
    """

    channels: Literal["RGB", "Y"] = "RGB"
    enlarged: bool = False
    largest: float = 1.0
    smallest: int = 1
    multiple: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether the network takes RGB images in [0, 1], of any size, as they are."""
        return self == Form()

    @property
    def takes_rgb(self) -> bool:
        """Whether the network takes RGB images in [0, 1] as they are, if their size is right."""
        return (self.channels, self.enlarged, self.largest) == ("RGB", False, 1.0)

    def padded(self, side: int) -> int:
        """Return the length to which the network needs a side of the LR image continued."""
        return -(-max(side, self.smallest) // self.multiple) * self.multiple

    def __str__(self) -> str:
        """Describe the form in a few words."""
        words: list[str] = [self.channels]
        if self.enlarged:
            words.append("enlarged bicubically first")
        if self.largest != 1:
            words.append(f"in [0, {self.largest:g}]")
        if self.smallest > 1:
            words.append(f"at least {self.smallest}x{self.smallest}")
        if self.multiple > 1:
            words.append(f"sides that are multiples of {self.multiple}")
        return ", ".join(words)


@dataclass(frozen=True)
class Geometry:
    """The facts about a network that tiling needs; see :class:`safmn.archs.family.Member`."""

    scale: int
    window: int
    halo: int | None


@dataclass(frozen=True)
class Peer:
    """A declared network.

    Attributes:
        name: registered name.
        network: constructor, or None if the network is BasicSR's.
        where: module of the class.
        small: arguments of a small network, for tests.
        sizes: published sizes: name in tables -> arguments without the scale.
        scales: scales that were published.
        scale_argument: the constructor's argument for the scale; "" if it has none.
        paper: where it was published.
        code: the authors' code.
        form: how it takes its image, unless the instance has an attribute ``form``.
        arguments_from: reads the arguments from a state dict's shapes; None for another network's. If the shapes fit
            several scales, the scale's value is the tuple of them.
        geometry: for BasicSR's networks, which do not have the attributes ``scale``, ``window`` and ``halo``.
        fold: for BasicSR's networks: returns the network in its form for inference; ours have a method ``folded``.
        note: one sentence for the table of networks.
    """

    name: str
    network: type[nn.Module] | None
    where: str
    small: Arguments
    sizes: Mapping[str, Arguments]
    scales: tuple[int, ...]
    scale_argument: str
    paper: Paper
    code: Code
    form: Form
    arguments_from: ArgumentsFrom
    geometry: Callable[[Any], Geometry] | None = None
    fold: Callable[[Any], nn.Module] | None = None
    note: str = ""
    of_size: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def arguments(self, size: str, scale: int) -> Arguments:
        """Return the constructor's arguments of a published size."""
        return {**self.sizes[size], **({self.scale_argument: scale} if self.scale_argument else {})}

    def scales_of(self, size: str) -> tuple[int, ...]:
        """Return the scales at which a size was published."""
        return self.of_size.get(size, self.scales)


_LAST = "basicsr"  # a suffix of BasicSR's registries: such a component is found if no other has its name

PEERS: dict[str, Peer] = {}
"""The networks of others, by registered name, in the order in which weights are tried."""

Network = TypeVar("Network", bound=type[nn.Module])


def peer(
    *,
    small: Arguments,
    sizes: Mapping[str, Arguments],
    paper: Paper,
    code: Code,
    form: Form | None = None,
    scales: tuple[int, ...] = (2, 3, 4),
    scale_argument: str = "upscale",
    of_size: Mapping[str, tuple[int, ...]] | None = None,
    note: str = "",
) -> Callable[[Network], Network]:
    """Register a network in BasicSR's ``ARCH_REGISTRY`` and in :data:`PEERS`.

    A user may register a network of the same name, from another repository for example: then that one is found.

    The class has a class method ``arguments_from``, and its instances have the attributes ``scale``, ``window`` and
    ``halo``, all as in :class:`safmn.archs.family.Member`. ``scale`` is that of the whole way from the LR image to the
    result, and ``halo`` is in LR pixels, also for networks that take an enlarged image.

    Args:
        small, sizes, paper, code, scales, scale_argument, note: see :class:`Peer`.
        form: see :class:`Form`; None: RGB in [0, 1].
        of_size: sizes that were published at other scales than ``scales``.
    """

    def register(network: Network) -> Network:
        declared = Peer(
            name=network.__name__,
            network=network,
            where=network.__module__,
            small=small,
            sizes=sizes,
            scales=scales,
            scale_argument=scale_argument,
            paper=paper,
            code=code,
            form=form or Form(),
            arguments_from=network.arguments_from,  # type: ignore[attr-defined]
            note=note,
            of_size=of_size or {},
        )
        PEERS[declared.name] = declared
        registered: Network = ARCH_REGISTRY.register(suffix=_LAST)(network)
        return network if registered is None else registered

    return register


def peer_of(network: nn.Module) -> Peer | None:
    """Return the declaration of a network, or None if it has none. A subclass has its parent's."""
    for kind in type(network).__mro__:
        declared = PEERS.get(kind.__name__)
        if declared is not None and kind.__module__ == declared.where:
            return declared
    return None


def form_of(network: nn.Module) -> Form:
    """Return the form of a network; that of RGB in [0, 1] for networks that are not declared here."""
    declared = peer_of(network)
    if declared is None:
        return Form()
    own = getattr(network, "form", None)
    return own if isinstance(own, Form) else declared.form
