"""Contextual loss: Mechrez et al., "The Contextual Loss for Image Transformation with Non-Aligned Data", ECCV 2018."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.losses.perceptual_loss import PerceptualLoss
from safmn.registry import LOSS_REGISTRY
from safmn.value_types import NotNegativeFloat, Positive, PositiveFloat

_EPSILON = 1e-5  # added to the smallest distance (eq. 2)


@LOSS_REGISTRY.register()
class ContextualLoss(nn.Module):
    """Minus the logarithm of how well every feature of the target is found anywhere in the prediction.

    Args:
        loss_weight: factor of the result.
        layer_weights: weight of each layer of VGG, such as ``conv3_4``; null: compare patches of pixels, which need no
            weights of VGG.
        patch: side of the patches of pixels.
        bandwidth: h in eq. 3.
        max_positions: features are sampled on a regular grid of at most this many positions, because the memory grows
            with their square.
        vgg_type: ``vgg16`` or ``vgg19``.
        vgg_weights: local file with torchvision's weights; see ``PerceptualLoss``.
    """

    def __init__(
        self,
        loss_weight: NotNegativeFloat = 1.0,
        layer_weights: Mapping[str, float] | None = None,
        patch: Positive = 5,
        bandwidth: PositiveFloat = 0.5,
        max_positions: Positive = 1024,
        vgg_type: str = "vgg19",
        vgg_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.loss_weight, self.patch = loss_weight, patch
        self.bandwidth, self.max_positions = bandwidth, max_positions
        self.layer_weights = dict(layer_weights or {})
        self.vgg = PerceptualLoss(layer_weights, vgg_type, vgg_weights=vgg_weights) if layer_weights else None

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss (a scalar) of two (B, 3, H, W) images in [0, 1]."""
        total = pred.new_zeros(())
        with torch.no_grad():
            wanted = self._features(target)
        for name, feature in self._features(pred).items():
            total = total + self.layer_weights.get(name, 1.0) * self._distance(feature, wanted[name])
        return self.loss_weight * total

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        if self.vgg is not None:
            return self.vgg.extract(image)
        batch, channels, height, width = image.shape
        side = self.patch
        patches = F.unfold(image, side)  # (B, C * side * side, positions)
        return {"pixels": patches.reshape(batch, channels * side**2, height - side + 1, width - side + 1)}

    def _distance(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return -log CX of two feature maps (B, C, h, w), the mean over the batch."""
        pred, target = (self._sampled(feature).flatten(2) for feature in (pred, target))  # (B, C, n)
        mean = target.mean(dim=(0, 2), keepdim=True)
        pred, target = (F.normalize(feature - mean, dim=1) for feature in (pred, target))
        distance = (1 - torch.einsum("bci,bcj->bij", pred, target)).clamp(min=0)  # (B, i of pred, j of target)
        relative = distance / (distance.amin(dim=2, keepdim=True) + _EPSILON)  # eq. 2
        affinity = F.softmax((1 - relative) / self.bandwidth, dim=2)  # eq. 3 and 4
        similarity = affinity.amax(dim=1).mean(dim=1)  # (B,), eq. 5
        return -torch.log(similarity).mean()

    def _sampled(self, feature: Tensor) -> Tensor:
        """Keep every k-th row and column, so that at most ``max_positions`` remain."""
        step = 1
        while -(-feature.shape[2] // step) * -(-feature.shape[3] // step) > self.max_positions:
            step += 1
        return feature[:, :, ::step, ::step]
