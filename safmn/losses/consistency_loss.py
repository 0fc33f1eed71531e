"""Consistency of brightness and colour: L1 between low-passed luma and chroma of prediction and target.

A perceptual or adversarial loss leaves large areas free to drift in brightness and hue. This loss compares what remains
of the images after a Gaussian blur, and leaves details to the other losses. The colour space is that of ITU-R BT.601;
luma and chroma terms for super-resolution: the losses of the same purpose in traiNNer-redux and neosr.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.losses.luma import ycbcr
from safmn.registry import LOSS_REGISTRY
from safmn.value_types import NotNegativeFloat


@LOSS_REGISTRY.register()
class ConsistencyLoss(nn.Module):
    """L1 between the blurred Y channels, and between the blurred Cb and Cr channels.

    Args:
        loss_weight: factor of the result.
        luma_weight: weight of the Y channel.
        chroma_weight: weight of the mean of Cb and Cr.
        sigma: standard deviation of the blur in pixels; 0: no blur.
    """

    window: Tensor

    def __init__(
        self,
        loss_weight: NotNegativeFloat = 1.0,
        luma_weight: NotNegativeFloat = 1.0,
        chroma_weight: NotNegativeFloat = 1.0,
        sigma: NotNegativeFloat = 3.0,
    ) -> None:
        super().__init__()
        self.loss_weight, self.luma_weight, self.chroma_weight = loss_weight, luma_weight, chroma_weight
        radius = math.ceil(3 * sigma)
        steps = torch.arange(-radius, radius + 1, dtype=torch.float64)
        window = torch.exp(-(steps**2) / (2 * sigma**2)) if sigma else torch.ones(1, dtype=torch.float64)
        self.register_buffer("window", window / window.sum(), persistent=False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss (a scalar) of two (B, 3, H, W) RGB images in [0, 1]."""
        difference = self._blurred(ycbcr(pred) - ycbcr(target)).abs()  # the conversion and the blur are linear
        luma, chroma = difference[:, :1].mean(), difference[:, 1:].mean()
        return self.loss_weight * (self.luma_weight * luma + self.chroma_weight * chroma)

    def _blurred(self, image: Tensor) -> Tensor:
        radius, count = len(self.window) // 2, image.shape[1]
        window = self.window.to(image.dtype).expand(count, 1, -1)
        padded = F.pad(image, (radius, radius, radius, radius), mode="replicate")
        across = F.conv2d(padded, window[:, :, None, :], groups=count)
        return F.conv2d(across, window[:, :, :, None], groups=count)
