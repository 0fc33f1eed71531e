"""The negative PSNR as a loss, as NAFNet trains (Chen et al., "Simple Baselines for Image Restoration", ECCV 2022)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from safmn.losses.luma import luma
from safmn.registry import LOSS_REGISTRY
from safmn.value_types import NotNegativeFloat

_SMALLEST = 1e-8  # added to the mean squared error, as in NAFNet


@LOSS_REGISTRY.register()
class PSNRLoss(nn.Module):
    """Minus the mean PSNR over the images of a batch, in dB.

    Args:
        loss_weight: factor of the result.
        reduction: only ``mean``, as in NAFNet's option files.
        toY: measure on the Y channel (BT.601) instead of RGB.
    """

    def __init__(self, loss_weight: NotNegativeFloat = 1.0, reduction: str = "mean", toY: bool = False) -> None:
        super().__init__()
        self.loss_weight, self.on_luma = loss_weight, toY
        self.reduction = reduction

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss (a scalar) of two (B, C, H, W) images in [0, 1]."""
        if self.on_luma:
            pred, target = luma(pred), luma(target)
        error = (pred - target).square().mean(dim=(1, 2, 3))  # (B,)
        return self.loss_weight * 10 / math.log(10) * (error + _SMALLEST).log().mean()
