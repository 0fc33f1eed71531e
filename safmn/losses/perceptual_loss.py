"""Perceptual loss on VGG features. The VGG weights are read from local files and never downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn import compat
from safmn.errors import OptionError, WeightsError, did_you_mean
from safmn.registry import LOSS_REGISTRY, OURS
from safmn.weights import load_state_dict

# The names, with hash, of the files that torchvision downloads.
_FILES = {"vgg16": "vgg16-397923af.pth", "vgg19": "vgg19-dcbb9e9d.pth"}
_URL = "https://download.pytorch.org/models/"
_MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]
_STD = (0.229, 0.224, 0.225)


def vgg_file(vgg_type: str, given: str | None) -> Path:
    """Return the local file with the weights of torchvision's VGG.

    Args:
        vgg_type: ``vgg16`` or ``vgg19``.
        given: a file, or ``None`` to look in torchvision's cache and in BasicSR's ``experiments/pretrained_models``.

    Raises:
        WeightsError: there is no such file. The message says how to get it.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _FILES[vgg_type]
    places = [Path(given)] if given else [cached, Path("experiments/pretrained_models") / _FILES[vgg_type]]
    for place in places:
        if place.is_file():
            return place
    raise WeightsError(
        f"PerceptualLoss needs the weights of torchvision's {vgg_type}, not found in: {', '.join(map(str, places))}. "
        f"Get them with: curl --create-dirs -o {cached} {_URL}{_FILES[vgg_type]} (or set vgg_weights to a file)"
    )


def _load_features(features: nn.Module, file: Path) -> None:
    try:
        state = load_state_dict(file)
        prefix = "features."
        features.load_state_dict(
            {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        )
    except Exception as error:  # a wrong file can raise any exception
        raise WeightsError(f"{file} does not contain the weights of torchvision's VGG: {error}") from error


def layer_names(features: nn.Sequential) -> list[str]:
    """Return the names ``conv1_1, relu1_1, ..., pool1, conv2_1, ...`` of the modules of torchvision's ``features``."""
    names, stage, number = [], 1, 0
    for module in features:
        if isinstance(module, nn.MaxPool2d):
            names.append(f"pool{stage}")
            stage, number = stage + 1, 0
        elif isinstance(module, nn.Conv2d):
            number += 1
            names.append(f"conv{stage}_{number}")
        else:
            names.append(f"relu{stage}_{number}")
    return names


@LOSS_REGISTRY.register(suffix=OURS)
class PerceptualLoss(nn.Module):
    """Weighted distance between VGG features (Johnson et al., arXiv 1603.08155), and between their Gram matrices.

    It equals BasicSR's loss of the same name, except that the VGG weights come from a local file.

    Args:
        layer_weights: weight of each layer, by name (``conv5_4`` is the layer before its ReLU).
        vgg_type: ``vgg16`` or ``vgg19``.
        use_input_norm: normalise with ImageNet's mean and standard deviation.
        range_norm: whether the images are in [-1, 1] instead of [0, 1].
        perceptual_weight: weight of the feature distance; 0 leaves it out.
        style_weight: weight of the Gram distance; 0 leaves it out.
        criterion: ``l1``, ``l2`` or ``fro`` (Frobenius norm).
        vgg_weights: local file with torchvision's weights; by default the file in torchvision's cache or in BasicSR's
            ``experiments/pretrained_models``.

    Raises:
        OptionError: ``vgg_type``, a layer or ``criterion`` is unknown.
        WeightsError: the weights are not on this machine, or the file contains other ones.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        layer_weights: Mapping[str, float],
        vgg_type: str = "vgg19",
        use_input_norm: bool = True,
        range_norm: bool = False,
        perceptual_weight: float = 1.0,
        style_weight: float = 0.0,
        criterion: str = "l1",
        vgg_weights: str | None = None,
    ) -> None:
        super().__init__()
        if vgg_type not in _FILES:
            raise OptionError(f"PerceptualLoss: vgg_type {vgg_type!r} is unknown; choose {' or '.join(_FILES)}")
        if criterion not in ("l1", "l2", "fro"):
            raise OptionError(f"PerceptualLoss: criterion {criterion!r} is unknown; choose l1, l2 or fro")
        compat.repair_torchvision()
        from torchvision.models import vgg

        features: nn.Sequential = getattr(vgg, vgg_type)(weights=None).features
        names = layer_names(features)
        for layer in layer_weights:
            if layer not in names:
                raise OptionError(f"PerceptualLoss: {vgg_type} has no layer {layer!r}.{did_you_mean(layer, names)}")
        _load_features(features, vgg_file(vgg_type, vgg_weights))
        self.layer_weights = dict(layer_weights)
        self.names = names[: 1 + max(names.index(layer) for layer in layer_weights)]
        self.features = nn.ModuleList(list(features)[: len(self.names)]).eval().requires_grad_(False)
        for module in self.features:
            if isinstance(module, nn.ReLU):
                module.inplace = False  # in-place it would overwrite the features before it, which may be used
        self.range_norm, self.use_input_norm = range_norm, use_input_norm
        self.perceptual_weight, self.style_weight, self.criterion = perceptual_weight, style_weight, criterion
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def extract(self, image: Tensor) -> dict[str, Tensor]:
        """Return the features of the chosen layers, by name. ``image`` is (B, 3, h, w)."""
        x = (image + 1) / 2 if self.range_norm else image
        x = (x - self.mean) / self.std if self.use_input_norm else x
        found = {}
        for name, module in zip(self.names, self.features, strict=True):
            x = module(x)
            if name in self.layer_weights:
                found[name] = x
        return found

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the perceptual and style loss of (B, 3, h, w) images: scalars, or ``None`` if the weight is 0."""
        predicted = self.extract(x)
        with torch.no_grad():
            wanted = self.extract(gt)
        perceptual = style = None
        if self.perceptual_weight > 0:
            perceptual = self.perceptual_weight * self._distance(predicted, wanted)
        if self.style_weight > 0:
            grams = ({name: _gram(feature) for name, feature in part.items()} for part in (predicted, wanted))
            style = self.style_weight * self._distance(*grams)
        return perceptual, style

    def _distance(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
        measure: Any = {"l1": F.l1_loss, "l2": F.mse_loss, "fro": lambda p, q: torch.linalg.vector_norm(p - q)}
        terms = [weight * measure[self.criterion](a[name], b[name]) for name, weight in self.layer_weights.items()]
        return torch.stack(terms).sum()


def _gram(feature: Tensor) -> Tensor:
    """Return the Gram matrices (B, C, C) of (B, C, h, w) features, divided by C * h * w."""
    flat = feature.flatten(2)  # (B, C, h*w)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])
