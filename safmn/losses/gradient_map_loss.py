"""Gradient loss: Ma et al., "Structure-Preserving Super Resolution with Gradient Guidance" (SPSR), CVPR 2020, eq. 2."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.registry import LOSS_REGISTRY
from safmn.value_types import NotNegativeFloat

_EPSILON = 1e-6  # under the root, as in SPSR, so that the gradient of a flat area is finite


@LOSS_REGISTRY.register()
class GradientMapLoss(nn.Module):
    """L1 between the gradients of prediction and target; differences of the pixels to both sides.

    Args:
        loss_weight: factor of the result.
        of: ``magnitude`` compares the lengths of the gradients (SPSR); ``components`` compares the horizontal and the
            vertical differences.
    """

    def __init__(
        self, loss_weight: NotNegativeFloat = 1.0, of: Literal["magnitude", "components"] = "magnitude"
    ) -> None:
        super().__init__()
        self.loss_weight, self.of = loss_weight, of

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss (a scalar) of two (B, C, H, W) images in [0, 1]."""
        one, other = _gradient(pred), _gradient(target)
        if self.of == "magnitude":
            one, other = ((part.square().sum(0) + _EPSILON).sqrt() for part in (one, other))
        return self.loss_weight * (one - other).abs().mean()


def _gradient(image: Tensor) -> Tensor:
    """Return the differences I(x+1) - I(x-1) and I(y+1) - I(y-1), with zeros outside: (2, B, C, H, W)."""
    padded = F.pad(image, (1, 1, 1, 1))
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.stack((across, down))
