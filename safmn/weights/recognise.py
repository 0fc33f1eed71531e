"""Recognise a network and its arguments from the names and shapes of its weights."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from safmn.archs import FAMILY
from safmn.archs.peers import PEERS, Peer, in_form
from safmn.archs.shapes import Shapes
from safmn.errors import UserError, WeightsError
from safmn.registry import ARCH_REGISTRY, build, construct, find
from safmn.weights.bounds import NetworkTooLarge, bounded_building


class UnknownNetworkError(WeightsError):
    """The weights do not belong to a network of the SAFMN family or of :mod:`safmn.archs.peers`."""


@dataclass(frozen=True)
class Recognised:
    """A network that weights belong to.

    Attributes:
        type: its registered name.
        kwargs: its constructor's arguments.
        scale: its scale (1: same size). If ``scales`` has several, the largest of them.
        scales: the scales that the weights serve, where their shapes do not tell it, as those of VDSR; otherwise empty.
    """

    type: str
    kwargs: dict[str, Any]
    scale: int
    scales: tuple[int, ...] = ()

    def build(self) -> nn.Module:
        """Build the network on the meta device, without values; ``load_state_dict(assign=True)`` supplies them.

        BasicSR's networks compute constants when they are built, so they get values.
        """
        section = {"type": self.type, **self.kwargs}
        if self.needs_values:
            return _with_values(section)
        with torch.device("meta"):
            return _constructed(section)

    @property
    def needs_values(self) -> bool:
        """Whether building the network takes memory, as for BasicSR's, which compute constants."""
        return self.type in PEERS and PEERS[self.type].network is None

    def __str__(self) -> str:
        arguments = ", ".join(f"{name} {value}" for name, value in self.kwargs.items())
        return f"{self.type} ({arguments})"


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def difference(expected: Shapes, found: Shapes) -> str:
    """Describe why weights of shapes ``found`` do not fit a network of shapes ``expected``; empty if they fit."""
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    other = [name for name in expected if name in found and expected[name] != found[name]]
    parts = []
    if other:
        name = other[0]
        parts.append(f"{name} is {found[name]} in the file and {expected[name]} in the network{_more(other)}")
    if missing:
        parts.append(f"{missing[0]} is missing{_more(missing)}")
    if surplus:
        parts.append(f"{surplus[0]} is unknown to the network{_more(surplus)}")
    return "; ".join(parts)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""


def recognise(state_dict: Mapping[str, Tensor], *, scale: int | None = None) -> Recognised:
    """Return the network that has exactly these weights: of the SAFMN family, or of :mod:`safmn.archs.peers`.

    Args:
        state_dict: the weights.
        scale: which scale to build, where the weights serve several.

    Raises:
        UnknownNetworkError: the weights do not belong to such a network.
        WeightsError: the weights resemble a network of the SAFMN family but do not match it exactly, or do not serve
            ``scale``.
    """
    shapes = shapes_of(state_dict)
    solid = {name: shape for name, shape in shapes.items() if shape and 0 not in shape}
    for network_class in FAMILY:
        arguments = network_class.arguments_from(solid)
        if arguments is not None:
            return _confirmed(network_class.__name__, arguments, state_dict)
    almost = []
    for declared in PEERS.values():
        arguments = declared.arguments_from(solid)
        if arguments is None:
            continue
        try:
            return _confirmed_peer(declared, arguments, state_dict, scale)
        except _OtherNetwork as error:  # another variant, which spandrel may know
            almost.append(f" It {error}")
    names = ", ".join(list(shapes)[:3])
    known = "not a network of the SAFMN family nor of those in docs/peers.md"
    raise UnknownNetworkError(f"{known} ({len(shapes)} tensors: {names}, ...).{''.join(almost)}")


class _OtherNetwork(WeightsError):
    """The weights resemble a network, but do not match it exactly."""


def _confirmed(name: str, arguments: dict[str, Any], state_dict: Mapping[str, Tensor]) -> Recognised:
    """Check that every name and shape is the network's, and add its scale."""
    guess = Recognised(name, arguments, scale=0)
    _check_count(guess, len(state_dict))
    try:
        with bounded_building(state_dict) if guess.needs_values else contextlib.nullcontext():
            network = guess.build()
            scale = getattr(in_form(network), "scale", 1)
    except (UserError, NetworkTooLarge) as error:
        raise _OtherNetwork(f"looks like {guess}, but {error}") from error
    problem = difference(shapes_of(network.state_dict()), shapes_of(state_dict))
    if problem:
        raise _OtherNetwork(f"looks like {guess}, but {problem}.")
    return Recognised(name, arguments, scale=int(scale))


def _confirmed_peer(
    declared: Peer, arguments: dict[str, Any], state_dict: Mapping[str, Tensor], scale: int | None
) -> Recognised:
    """Choose the scale, where the weights serve several, and check that every name and shape is the network's."""
    among = arguments.get(declared.scale_argument)
    scales: tuple[int, ...] = among if isinstance(among, tuple) else ()
    if scales:
        if scale is not None and scale not in scales:
            served = ", ".join(map(str, scales))
            raise WeightsError(f"weights of {declared.name}, which serve the scales {served}, not {scale}.")
        arguments = {**arguments, declared.scale_argument: scale or max(scales)}
    found = _confirmed(declared.name, arguments, state_dict)
    return replace(found, scales=scales) if len(scales) > 1 else found


def _check_count(guess: Recognised, tensors: int) -> None:
    """Check, before the network is built, that its number of blocks is plausible for the number of tensors.

    Raises:
        WeightsError: the network would have more than twice as many tensors as the file.
    """
    counted = [name for name in ("n_blocks", "num_blocks", "num_layers") if name in guess.kwargs]
    if not counted:  # a network whose depth is fixed
        return
    ones = Recognised(guess.type, {**guess.kwargs, **dict.fromkeys(counted, 1)}, guess.scale)
    two = Recognised(guess.type, {**ones.kwargs, counted[-1]: 2}, guess.scale)
    of_each = len(two.build().state_dict()) - len(ones.build().state_dict())
    if math.prod(guess.kwargs[name] for name in counted) * of_each > 2 * tensors:
        raise _OtherNetwork(f"looks like {guess}, but has only {tensors} tensors.")


def check_fits(network_section: Mapping[str, Any], state_dict: Mapping[str, Tensor], source: str) -> None:
    """Check that weights fit the network that an option file describes.

    Args:
        network_section: ``type`` and the constructor's arguments.
        state_dict: the weights.
        source: the file they come from, for the message.

    Raises:
        WeightsError: they do not fit; for networks of the SAFMN family, the message names the first wrong argument.
    """
    problem = difference(_section_shapes(network_section), shapes_of(state_dict))
    if not problem:
        return
    try:
        found = recognise(state_dict)
    except UnknownNetworkError:
        raise WeightsError(f"{source}: these weights do not fit {network_section['type']}: {problem}.") from None
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    wrong = first_wrong_argument(network_section, found) or f"do not fit: {problem}"
    raise WeightsError(f"{source}: these weights {wrong}.")


def first_wrong_argument(section: Mapping[str, Any], found: Recognised) -> str | None:
    """Return ``"have upscaling_factor 2, but the option file says 4"``; None if every argument agrees."""
    if section["type"] != found.type:
        return f"are {found}, but the option file says {section['type']}"
    parameters = inspect.signature(find(ARCH_REGISTRY, found.type)).parameters
    declared = PEERS.get(found.type)
    for name, value in found.kwargs.items():
        if found.scales and declared is not None and name == declared.scale_argument:
            continue
        wanted = section.get(name, parameters[name].default)
        if wanted != value and not (name == "ffn_scale" and int(found.kwargs["dim"] * wanted) == _hidden(found)):
            return f"have {name} {value}, but the option file says {wanted}"
    return None


def _hidden(found: Recognised) -> int:
    return int(found.kwargs["dim"] * found.kwargs["ffn_scale"])


def _section_shapes(section: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the network in an option file."""
    kind = find(ARCH_REGISTRY, section["type"])
    if kind in FAMILY or any(kind is declared.network for declared in PEERS.values()):
        with torch.device("meta"):
            network = build(ARCH_REGISTRY, section)
    else:  # a foreign constructor may need real tensors
        network = _with_values(section)
    return shapes_of(network.state_dict())


def _constructed(section: Mapping[str, Any]) -> nn.Module:
    """Build a network of ours. A user may have registered another one of its name."""
    declared = PEERS.get(section["type"])
    kind = None if declared is None else declared.network
    network: nn.Module = build(ARCH_REGISTRY, section) if kind is None else construct(kind, section)
    return network


def _with_values(section: Mapping[str, Any]) -> nn.Module:
    """Build a network with values, without changing the random state."""
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = build(ARCH_REGISTRY, section)
    return network
