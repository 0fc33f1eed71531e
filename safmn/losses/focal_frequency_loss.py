"""Focal frequency loss: Jiang et al., "Focal Frequency Loss for Image Reconstruction and Synthesis", ICCV 2021."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from safmn.errors import OptionError
from safmn.registry import LOSS_REGISTRY
from safmn.value_types import NotNegativeFloat, Positive, PositiveFloat


@LOSS_REGISTRY.register()
class FocalFrequencyLoss(nn.Module):
    """Squared distance of Fourier coefficients, weighted by the distance itself, so that hard frequencies count more.

    Args:
        loss_weight: factor of the result.
        alpha: exponent of the weights (eq. 8).
        patch_factor: the images are cut into this many patches along each side.
        log_matrix: take the logarithm of the weights.
    """

    def __init__(
        self,
        loss_weight: NotNegativeFloat = 1.0,
        alpha: PositiveFloat = 1.0,
        patch_factor: Positive = 1,
        log_matrix: bool = False,
    ) -> None:
        super().__init__()
        self.loss_weight, self.alpha = loss_weight, alpha
        self.patch_factor, self.log_matrix = patch_factor, log_matrix

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss (a scalar) of two (B, C, H, W) images in [0, 1]. It is computed in float32 or float64.

        Raises:
            OptionError: the sides are no multiples of ``patch_factor``.
        """
        difference = (pred - target).to(torch.promote_types(pred.dtype, torch.float32))
        squared = torch.fft.fft2(self._patches(difference), norm="ortho").abs().square()  # (B, p*p, C, h, w)
        weights = squared.detach().sqrt() ** self.alpha
        if self.log_matrix:
            weights = torch.log(weights + 1)
        weights = weights / weights.amax(dim=(-2, -1), keepdim=True)
        weights = torch.nan_to_num(weights, nan=0.0).clamp(0, 1)  # NaN: equal patches
        return self.loss_weight * (weights * squared).mean()

    def _patches(self, image: Tensor) -> Tensor:
        """Cut (B, C, H, W) into (B, p * p, C, H / p, W / p)."""
        batch, channels, height, width = image.shape
        parts = self.patch_factor
        if height % parts or width % parts:
            raise OptionError(f"FocalFrequencyLoss: {width}x{height} is no multiple of patch_factor {parts}")
        cut = image.reshape(batch, channels, parts, height // parts, parts, width // parts)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, parts**2, channels, height // parts, width // parts)
