"""Weights into a network, and a network from weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safmn import compat
from safmn.errors import WeightsError
from safmn.weights.bounds import NetworkTooLarge, bounded_building, check_layers
from safmn.weights.files import StateDict, generators_in, load_state_dict, locate
from safmn.weights.recognise import Recognised, UnknownNetworkError, check_fits, difference, recognise, shapes_of

logger = logging.getLogger(__name__)


class ForeignNetwork(nn.Module):
    """A network that spandrel recognised, in the form of ours.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: what both sides of its input should be multiples of.
        halo: None, not known.
        network: the network itself.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.scale: int = descriptor.scale
        self.window: int = descriptor.size_requirements.multiple_of
        self.halo = None
        self.network: nn.Module = descriptor.model
        self._descriptor = descriptor

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale) in [0, 1]; any size, padded as spandrel does."""
        image: Tensor = self._descriptor(x)
        return image


def load_into(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    param_key: str | None = None,
    strict: bool = True,
    section: Mapping[str, Any] | None = None,
) -> None:
    """Load a weight file into a network that was built from an option file.

    Args:
        network: the bare network (no DistributedDataParallel around it).
        path: see :func:`safmn.weights.load_state_dict`, as ``param_key``.
        strict: whether every name and shape must agree; otherwise what agrees is loaded and the rest is warned about.
        section: the option file's section of the network, which a message about wrong weights then quotes.

    Raises:
        WeightsError: the file cannot be read, or does not fit; names the file and the first wrong argument.
    """
    own = network.state_dict()
    state_dict = _named_as(own, load_state_dict(path, param_key=param_key), path)
    if section is not None and strict:
        check_fits(section, state_dict, str(path))
    expected = shapes_of(own)
    problem = difference(expected, shapes_of(state_dict))
    if problem and strict:
        raise WeightsError(f"{path}: these weights do not fit {type(network).__name__}: {problem}.")
    fitting = {name: tensor for name, tensor in state_dict.items() if expected.get(name) == tuple(tensor.shape)}
    if expected and not fitting:
        raise WeightsError(f"{path}: nothing in it fits {type(network).__name__}: {problem}.")
    if problem:
        share = f"{len(fitting)} of {len(expected)} tensors are loaded"
        logger.warning("%s does not fit %s everywhere: %s. %s.", path, type(network).__name__, problem, share)
    _check_kinds(own, fitting, path)
    network.load_state_dict(fitting, strict=strict)


def _named_as(own: Mapping[str, Tensor], state_dict: StateDict, path: str | os.PathLike[str]) -> StateDict:
    """The weights, or, where no name of them is the network's, what a trainer put under a prefix and is."""
    if own.keys() & state_dict.keys():
        return state_dict
    for prefix, below in generators_in(state_dict):
        if own.keys() & below.keys():
            _say_prefix(path, prefix, state_dict, below)
            return below
    return state_dict


def _say_prefix(path: str | os.PathLike[str], prefix: str, state_dict: StateDict, below: StateDict) -> None:
    left = len(state_dict) - len(below)
    level = logging.WARNING if left else logging.INFO
    logger.log(level, "%s: using the weights under %r; %d other tensors are left out.", path, prefix, left)


def _check_kinds(own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Refuse whole numbers where the network has floating point: they are quantised, and their scale is not known."""
    for name, tensor in state_dict.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise WeightsError(f"{path}: {name} is {tensor.dtype}; weights are floating point.")


def load_network(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu", param_key: str | None = None
) -> nn.Module:
    """A network ready to use, from a weight file alone: its names and shapes tell which network it is.

    Args:
        path: see :func:`safmn.weights.load_state_dict`, as ``param_key``.
        device: where the network shall live.

    Returns:
        The network in float32, in evaluation mode, without gradients, with ``scale``, ``window`` and ``halo``: one of
        the SAFMN family, or a :class:`ForeignNetwork` where spandrel (optional) knows the weights.

    Raises:
        WeightsError: the file cannot be read, or the network is known to nobody; names the file and the reason.
    """
    file = locate(path)
    state_dict = load_state_dict(file, param_key=param_key)
    try:
        found, state_dict = _recognised(state_dict, file)
    except UnknownNetworkError as error:
        network: nn.Module = _foreign(state_dict, file, str(error))
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error
    else:
        network = found.build()
        _check_kinds(network.state_dict(), state_dict, file)
        network.load_state_dict({name: tensor.float() for name, tensor in state_dict.items()}, assign=True)
    return network.to(device).eval().requires_grad_(False)


def _recognised(state_dict: StateDict, path: Path) -> tuple[Recognised, StateDict]:
    """The network of the family, and its weights, which may lie under a trainer's prefix."""
    try:
        return recognise(state_dict), state_dict
    except UnknownNetworkError:
        for prefix, below in generators_in(state_dict):
            try:
                found = recognise(below)
            except UnknownNetworkError:
                continue
            _say_prefix(path, prefix, state_dict, below)
            return found, below
        raise


def _foreign(state_dict: StateDict, path: Path, reason: str) -> ForeignNetwork:
    """What spandrel makes of the weights."""
    try:
        check_layers(state_dict)
    except NetworkTooLarge as error:
        raise WeightsError(f"{path}: {error}") from error
    try:
        compat.repair_torchvision()  # which spandrel imports
        import spandrel
    except ImportError as error:
        raise WeightsError(
            f"{path}: {reason} The optional package spandrel knows many others: pip install spandrel."
        ) from error
    try:
        with bounded_building(state_dict):
            descriptor = spandrel.ModelLoader().load_from_state_dict(dict(state_dict))
    except NetworkTooLarge as error:
        raise WeightsError(f"{path}: {error}") from error
    except spandrel.UnsupportedModelError as error:
        raise WeightsError(f"{path}: {reason} spandrel does not know it either.") from error
    except Exception as error:  # its detection goes by a few names; what it then meets can be anything
        detail = " ".join(str(error).split())
        raise WeightsError(f"{path}: {reason} spandrel failed on it: {detail:.200}") from error
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise WeightsError(
            f"{path}: {descriptor.architecture.name} ({descriptor.purpose}) does not map image to image."
        )
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise WeightsError(
            f"{path}: {descriptor.architecture.name} maps {descriptor.input_channels} to {descriptor.output_channels} "
            "channels; only RGB networks (3 to 3) are supported."
        )
    own = descriptor.model.state_dict()
    _check_kinds(own, {name: tensor for name, tensor in state_dict.items() if name in own}, path)
    logger.info("%s: %s, scale %d, recognised by spandrel.", path, descriptor.architecture.name, descriptor.scale)
    return ForeignNetwork(descriptor)
