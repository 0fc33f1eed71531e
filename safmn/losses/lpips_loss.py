"""LPIPS: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from safmn.losses.backbones import features, learned, taps
from safmn.registry import LOSS_REGISTRY
from safmn.value_types import NotNegativeFloat

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # for images in [-1, 1] (LPIPS 0.1)
# Network -> torchvision's name and the places of the ReLUs that are compared.
_NETWORKS = {"vgg": ("vgg16", (3, 8, 15, 22, 29)), "alex": ("alexnet", (1, 4, 7, 9, 11))}


@LOSS_REGISTRY.register()
class LPIPSLoss(nn.Module):
    """Learned distance of normalised features (version 0.1).

    Args:
        loss_weight: factor of the result.
        net: ``vgg`` or ``alex``; the authors advise ``vgg`` for optimising and ``alex`` for measuring.
        network_weights: local file with torchvision's weights of VGG16 or AlexNet; null: torchvision's cache.
        learned_weights: local file with the weights of the layers; null: the file in the package ``lpips``.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        loss_weight: NotNegativeFloat = 1.0,
        net: Literal["vgg", "alex"] = "vgg",
        network_weights: str | None = None,
        learned_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        name, self.places = _NETWORKS[net]
        state = learned("lpips", f"weights/v0.1/{net}.pth", learned_weights, "LPIPSLoss")
        self.network = features(name, network_weights, "LPIPSLoss")
        for level in range(len(self.places)):
            self.register_buffer(f"layer{level}", state[f"lin{level}.model.1.weight"].float(), persistent=False)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss (a scalar), the mean LPIPS of two (B, 3, H, W) RGB images in [0, 1]."""
        with torch.no_grad():
            wanted = self._normalised(target)
        total = pred.new_zeros(())
        for level, (one, other) in enumerate(zip(self._normalised(pred), wanted, strict=True)):
            weights: Tensor = getattr(self, f"layer{level}")  # (1, C, 1, 1)
            total = total + ((one - other).square() * weights).sum(dim=1).mean()
        return self.loss_weight * total

    def _normalised(self, image: Tensor) -> list[Tensor]:
        """Return the features, each divided by its length over the channels."""
        found = taps(self.network, (2 * image - 1 - self.shift) / self.scale, self.places)
        return [feature / (feature.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for feature in found]
