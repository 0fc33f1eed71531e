"""Load weights into a network, or build a network from weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from safmn import compat
from safmn.archs import FAMILY
from safmn.archs.peers import InForm, in_form, peer_of
from safmn.archs.probing import padded, traits_of
from safmn.errors import WeightsError
from safmn.weights.bounds import NetworkTooLarge, bounded_building, check_layers
from safmn.weights.files import StateDict, generators_in, load_state_dict, locate, metadata_of
from safmn.weights.origin import Origin, import_code, network_of, read_origin
from safmn.weights.recognise import Recognised, UnknownNetworkError, check_fits, difference, recognise, shapes_of

logger = logging.getLogger(__name__)

_OWN = "If it is a network of your own, give its option file, too: -opt FILE."


class OtherScaleError(WeightsError):
    """The weights are for another scale than the one that was asked for.

    Attributes:
        found: the weights' scale.
    """

    def __init__(self, message: str, found: int) -> None:
        super().__init__(message)
        self.found = found


class WrappedNetwork(nn.Module):
    """A wrapper that gives a network of any kind the interface of the SAFMN networks.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: both input sides should be multiples of this number of pixels.
        smallest: smallest side of the input of ``network`` itself.
        halo: how far an output pixel depends on the input, in LR pixels to each side; None if unknown.
        network: the wrapped network.
        section: its section in an option file, if it is known.
    """

    smallest: int = 1
    section: Mapping[str, Any] | None = None

    def __init__(self, network: nn.Module, *, scale: int, window: int, halo: int | None) -> None:
        super().__init__()
        self.scale, self.window, self.halo = scale, window, halo
        self.network = network


def kind_of(network: nn.Module) -> str:
    """Return the name of a network's class, without wrappers."""
    return type(without_wrappers(network)).__name__


def without_wrappers(network: nn.Module) -> nn.Module:
    """Return the network itself, as its author wrote it."""
    while isinstance(network, (WrappedNetwork, OfNormalised, InForm)):
        network = network.network
    return network


class ProbedNetwork(WrappedNetwork):
    """A wrapper for a network whose traits are found by trying (:mod:`safmn.archs.probing`).

    Args:
        network: maps (B, 3, h, w) to (B, 3, h * scale, w * scale).
        section: its section in an option file, if it is known.

    Raises:
        ProbingError: the network cannot upscale RGB images.
    """

    def __init__(self, network: nn.Module, *, section: Mapping[str, Any] | None = None) -> None:
        traits = traits_of(network)
        super().__init__(network, scale=traits.scale, window=traits.window, halo=traits.halo)
        self.smallest, self.section = traits.smallest, section
        if traits.found:
            logger.info("%s: %s (found by trying)", kind_of(self), traits)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, h, w) RGB in [0, 1] of any size to (B, 3, h * scale, w * scale)."""
        y: Tensor = self.network(padded(x, self.window, self.smallest))
        return y[..., : x.shape[2] * self.scale, : x.shape[3] * self.scale]


class OfNormalised(nn.Module):
    """A network that was trained on normalised images, with the normalisation: it takes and gives plain images.

    Args:
        network: takes and gives (image - mean) / std.
        mean, std: values per channel; None: 0 and 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        super().__init__()
        self.network = network
        like = next(network.parameters(), torch.empty(0))
        for name, values in (("mean", mean or [0.0]), ("std", std or [1.0])):
            self.register_buffer(name, like.new_tensor(values)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) in [0, 1] to (B, C, h * scale, w * scale)."""
        y: Tensor = self.network((x - self.mean) / self.std) * self.std + self.mean
        return y


class ForeignNetwork(WrappedNetwork):
    """A wrapper for a network that spandrel recognised."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__(
            descriptor.model, scale=descriptor.scale, window=descriptor.size_requirements.multiple_of, halo=None
        )
        self._descriptor = descriptor

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, h, w) RGB in [0, 1] to (B, 3, h * scale, w * scale) in [0, 1]; spandrel pads any size."""
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
        network: the bare network, without a DistributedDataParallel wrapper.
        path: see :func:`safmn.weights.load_state_dict`.
        param_key: see :func:`safmn.weights.load_state_dict`.
        strict: whether all names and shapes must match; otherwise matching tensors are loaded, with a warning about
            the rest.
        section: the option file's section of the network, for messages about wrong weights.

    Raises:
        WeightsError: the file cannot be read or does not fit; the message names the file and the first wrong argument.
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
        raise WeightsError(f"{path}: no tensor fits {type(network).__name__}: {problem}.")
    if problem:
        share = f"{len(fitting)} of {len(expected)} tensors are loaded"
        logger.warning("%s does not fit %s completely: %s. %s.", path, type(network).__name__, problem, share)
    _check_kinds(own, fitting, path)
    network.load_state_dict(fitting, strict=strict)


def _named_as(own: Mapping[str, Tensor], state_dict: StateDict, path: str | os.PathLike[str]) -> StateDict:
    """Return the weights; if none of their names is the network's, return those below a trainer's prefix that fit."""
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
    logger.log(level, "%s: using the weights under %r; ignoring %d other tensors.", path, prefix, left)


def _check_kinds(own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Check that the tensors are floating point where the network's are.

    Integers would be quantised weights, and their scale is unknown.

    Raises:
        WeightsError: a tensor is not; the message names it.
    """
    for name, tensor in state_dict.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise WeightsError(f"{path}: {name} is {tensor.dtype}; weights must be floating point.")


def load_network(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    param_key: str | None = None,
    imports: Sequence[str] = (),
    scale: int | None = None,
) -> nn.Module:
    """Build a network from a weight file alone.

    The names and shapes of the tensors identify a network of the SAFMN family. Any other network is built from the
    file's note of its origin (:mod:`safmn.weights.origin`), or else by spandrel.

    Args:
        path: see :func:`safmn.weights.load_state_dict`.
        device: the device of the network.
        param_key: see :func:`safmn.weights.load_state_dict`.
        imports: files and modules with code of your own to import before; a weight file alone imports only code that
            you have named before.
        scale: the scale that the network must have. It is needed for weights that serve several scales, unless their
            file notes it.

    Returns:
        The network in float32, in evaluation mode, without gradients, with ``scale``, ``window`` and ``halo``. It maps
        RGB in [0, 1] to RGB in [0, 1]. It is one of the SAFMN family, one of :mod:`safmn.archs.peers` (maybe in an
        :class:`safmn.archs.peers.InForm`), a :class:`ProbedNetwork`, or a :class:`ForeignNetwork`.

    Raises:
        WeightsError: the file cannot be read, the network is unknown, or its code is missing; the message names the
            file and the reason.
        ProbingError: the network cannot upscale RGB images.
        UserError: a name in ``imports`` cannot be imported.
        OtherScaleError: the scale is another one; it is a WeightsError.
    """
    file = locate(path)
    import_code(imports)
    state_dict = load_state_dict(file, param_key=param_key)
    origin = read_origin(metadata_of(file), file)
    shifted = origin is not None and (origin.mean is not None or origin.std is not None)
    try:
        if shifted:  # only the note says so, not names and shapes
            raise UnknownNetworkError
        found, state_dict = _recognised(state_dict, file, scale)
    except UnknownNetworkError as error:
        network: nn.Module = (
            _foreign(state_dict, file, str(error)) if origin is None else _noted(origin, state_dict, file)
        )
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error
    else:
        noted = origin.scale if origin is not None and scale is None else None
        if found.scales and noted:
            found = recognise(state_dict, scale=noted)
        network = _filled(found, state_dict, file, noted or scale)
    network = in_form(network)
    found_scale = int(cast(int, network.scale))
    if scale is not None and found_scale != scale:
        raise OtherScaleError(f"{file}: these weights are for scale {found_scale}, not {scale}", found_scale)
    return network.to(device).eval().requires_grad_(False)


def _noted(origin: Origin, state_dict: StateDict, path: Path) -> nn.Module:
    """Build the network that a weight file says it is of, with the weights."""
    network = network_of(origin, state_dict, path)
    if problem := difference(shapes_of(network.state_dict()), shapes_of(state_dict)):
        raise WeightsError(f"{path}: these weights do not fit {origin.type} with {origin.arguments}: {problem}.")
    _check_kinds(network.state_dict(), state_dict, path)
    network.load_state_dict(state_dict)
    wrapped = with_interface(network.float().eval(), section=origin.section, mean=origin.mean, std=origin.std)
    if origin.scale and int(wrapped.scale) != origin.scale:  # type: ignore[arg-type]
        raise WeightsError(f"{path}: the note says scale {origin.scale}, but the network's scale is {wrapped.scale}.")
    logger.info("%s: %s, scale %d, built as the file says.", path, origin.type, wrapped.scale)
    return wrapped


def with_interface(
    network: nn.Module,
    *,
    section: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return a network that has ``scale``, ``window`` and ``halo`` and takes images of any size.

    A network of the SAFMN family is returned as it is, one of :mod:`safmn.archs.peers` as :func:`in_form` does, any
    other one in a :class:`ProbedNetwork`.

    Args:
        section: the network's section in an option file, if it is known.
        mean, std: what the network takes and gives is (image - mean) / std, per channel; None: 0 and 1.

    Raises:
        ProbingError: the network cannot upscale RGB images.
    """
    network = in_form(network)
    if mean or std:
        network = OfNormalised(network, mean, std)
    if isinstance(network, (WrappedNetwork, InForm)) or type(network) in FAMILY or peer_of(network) is not None:
        return network
    return ProbedNetwork(network, section=section)


def _filled(found: Recognised, state_dict: StateDict, file: Path, scale: int | None) -> nn.Module:
    """Build the recognised network with its weights.

    Raises:
        WeightsError: the weights serve several scales and ``scale`` is None, or a tensor holds integers.
    """
    if found.scales and scale is None:
        served = ", ".join(map(str, found.scales))
        raise WeightsError(
            f"{file}: weights of {found.type} do not say their scale (it can be {served}): give it (--scale "
            f"{found.scale} on the command line, scale={found.scale} in Python)"
        )
    network = found.build()
    own = network.state_dict()
    _check_kinds(own, state_dict, file)
    values = {name: tensor.float() if own[name].is_floating_point() else tensor for name, tensor in state_dict.items()}
    network.load_state_dict(values, assign=True)
    return network


def _recognised(state_dict: StateDict, path: Path, scale: int | None) -> tuple[Recognised, StateDict]:
    """Return the network and its weights, which may be below a trainer's prefix."""
    try:
        return recognise(state_dict, scale=scale), state_dict
    except UnknownNetworkError:
        for prefix, below in generators_in(state_dict):
            try:
                found = recognise(below, scale=scale)
            except UnknownNetworkError:
                continue
            _say_prefix(path, prefix, state_dict, below)
            return found, below
        raise


def _foreign(state_dict: StateDict, path: Path, reason: str) -> ForeignNetwork:
    """Build the network with spandrel."""
    try:
        check_layers(state_dict)
    except NetworkTooLarge as error:
        raise WeightsError(f"{path}: {error}") from error
    try:
        compat.repair_torchvision()  # spandrel imports torchvision
        import spandrel
    except ImportError as error:
        raise WeightsError(
            f"{path}: {reason} The optional package spandrel knows many other networks: pip install spandrel. {_OWN}"
        ) from error
    try:
        with bounded_building(state_dict):
            descriptor = spandrel.ModelLoader().load_from_state_dict(dict(state_dict))
    except NetworkTooLarge as error:
        raise WeightsError(f"{path}: {error}") from error
    except spandrel.UnsupportedModelError as error:
        raise WeightsError(f"{path}: {reason} spandrel does not know it either. {_OWN}") from error
    except Exception as error:  # spandrel looks at a few names only, so other content can raise anything
        detail = " ".join(str(error).split())
        raise WeightsError(f"{path}: {reason} spandrel failed on it: {detail:.200}") from error
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise WeightsError(
            f"{path}: {descriptor.architecture.name} ({descriptor.purpose}) does not map an image to an image."
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
