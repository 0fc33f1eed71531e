"""MS-SSIM as a loss: Wang, Simoncelli and Bovik, "Multiscale structural similarity", Asilomar 2003.

Zhao et al., "Loss Functions for Image Restoration with Neural Networks", IEEE TCI 2017, combine it with L1.
"""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.errors import OptionError
from safmn.registry import LOSS_REGISTRY
from safmn.value_types import NotNegativeFloat

_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of each scale, fine to coarse (section 3.2)
_SIDE, _SIGMA = 11, 1.5  # the window
_C1, _C2 = 0.01**2, 0.03**2  # for values in [0, 1]


@LOSS_REGISTRY.register()
class MSSSIMLoss(nn.Module):
    """One minus MS-SSIM, the mean over images and channels.

    Args:
        loss_weight: factor of the result.
        levels: number of scales. Five are MS-SSIM, one is SSIM; the exponents of fewer scales are scaled to the sum 1.
            The coarsest scale must hold a window of 11 pixels: five levels need patches of 161 pixels, three 41.
    """

    window: Tensor

    def __init__(self, loss_weight: NotNegativeFloat = 1.0, levels: Annotated[int, Meta(ge=1, le=5)] = 5) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        total = 1.0 if levels == len(_EXPONENTS) else sum(_EXPONENTS[:levels])  # the published ones add up to 1.0001
        self.exponents = [exponent / total for exponent in _EXPONENTS[:levels]]
        steps = torch.arange(_SIDE, dtype=torch.float64) - _SIDE // 2
        window = torch.exp(-(steps**2) / (2 * _SIGMA**2))
        self.register_buffer("window", window / window.sum(), persistent=False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss (a scalar) of two (B, C, H, W) images in [0, 1].

        Raises:
            OptionError: the images are too small for this number of levels.
        """
        levels = len(self.exponents)
        least = (_SIDE - 1) * 2 ** (levels - 1) + 1
        if min(pred.shape[-2:]) < least:
            raise OptionError(
                f"MSSSIMLoss: {levels} levels need images of at least {least} pixels, not {pred.shape[-1]}x"
                f"{pred.shape[-2]}: set fewer levels, or a larger gt_size"
            )
        product: Tensor | None = None
        for level, exponent in enumerate(self.exponents):
            similarity, structure = self._terms(pred, target)  # (B, C) each
            last = level == levels - 1
            factor = F.relu(similarity if last else structure) ** exponent  # a negative mean has no real power
            product = factor if product is None else product * factor
            if not last:
                padding = [side % 2 for side in pred.shape[-2:]]
                pred, target = (F.avg_pool2d(image, 2, padding=padding) for image in (pred, target))
        assert product is not None
        return self.loss_weight * (1 - product.mean())

    def _terms(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return SSIM, and its part without luminance, as means over the pixels: (B, C) each."""
        count = pred.shape[1]
        window = self.window.to(pred.dtype)

        def mean(image: Tensor) -> Tensor:
            across = F.conv2d(image, window.view(1, 1, 1, -1).expand(count, 1, 1, -1), groups=count)
            return F.conv2d(across, window.view(1, 1, -1, 1).expand(count, 1, -1, 1), groups=count)

        one, other = mean(pred), mean(target)
        variances = mean(pred * pred) - one**2, mean(target * target) - other**2
        covariance = mean(pred * target) - one * other
        structure = (2 * covariance + _C2) / (variances[0] + variances[1] + _C2)
        luminance = (2 * one * other + _C1) / (one**2 + other**2 + _C1)
        return (luminance * structure).mean(dim=(2, 3)), structure.mean(dim=(2, 3))
