"""Wavelet losses: L1 between the sub-bands of prediction and target.

Stationary transform: Korkmaz, Tekalp and Dogan, "Training Generative Image Super-Resolution Models by Wavelet-Domain
Losses Enables Better Control of Artifacts", CVPR 2024. Decimated transform: Huang et al., "Wavelet-SRNet", ICCV 2017.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.errors import OptionError
from safmn.losses.luma import luma
from safmn.registry import LOSS_REGISTRY
from safmn.value_types import NotNegativeFloat, Positive

# Low-pass filters of the decomposition (Daubechies, "Ten Lectures on Wavelets", 1992, chapters 6 and 8).
FILTERS: dict[str, tuple[float, ...]] = {
    "haar": (0.7071067811865476, 0.7071067811865476),
    "db2": (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025),
    "sym7": (
        0.002681814568257878, -0.0010473848886829163, -0.01263630340325193, 0.03051551316596357, 0.0678926935013727,
        -0.049552834937127255, 0.017441255086855827, 0.5361019170917628, 0.767764317003164, 0.2886296317515146,
        -0.14004724044296152, -0.10780823770381774, 0.004010244871533663, 0.010268176708511255,
    ),
}  # fmt: skip


@LOSS_REGISTRY.register()
class WaveletLoss(nn.Module):
    """L1 between wavelet coefficients; each level adds the three detail bands, the last one also its low-pass band.

    Args:
        loss_weight: factor of the result.
        wavelet: ``haar``, ``db2`` or ``sym7`` (the one of WGSR).
        levels: number of levels.
        stationary: without decimation (SWT), so that the loss does not depend on the position of the pixels.
        band_weights: weights of LL, LH, HL and HH, where the first letter is the filter along the rows.
        on_luma: compare the Y channels only, as WGSR does.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        loss_weight: NotNegativeFloat = 1.0,
        wavelet: Literal["haar", "db2", "sym7"] = "haar",
        levels: Positive = 1,
        stationary: bool = True,
        band_weights: Annotated[list[NotNegativeFloat], Meta(min_length=4, max_length=4)] | None = None,
        on_luma: bool = False,
    ) -> None:
        super().__init__()
        if wavelet not in FILTERS:
            raise OptionError(f"WaveletLoss: wavelet {wavelet!r} is unknown; choose one of {', '.join(FILTERS)}")
        self.loss_weight, self.levels, self.stationary, self.on_luma = loss_weight, levels, stationary, on_luma
        self.band_weights = [1.0] * 4 if band_weights is None else [float(weight) for weight in band_weights]
        low = torch.tensor(FILTERS[wavelet], dtype=torch.float64)
        signs = torch.tensor([-1.0, 1.0]).repeat(len(low) // 2)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", low.flip(0) * signs, persistent=False)  # the quadrature mirror filter

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss (a scalar) of two (B, C, H, W) images in [0, 1]."""
        difference = luma(pred) - luma(target) if self.on_luma else pred - target  # the transform is linear
        total = difference.new_zeros(())
        for level in range(self.levels):
            bands = self.bands(difference, level)
            last = level == self.levels - 1
            for band, weight in list(zip(bands, self.band_weights, strict=True))[0 if last else 1 :]:
                total = total + weight * band.abs().mean()
            difference = bands[0]
        return self.loss_weight * total

    def bands(self, image: Tensor, level: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return LL, LH, HL and HH of one level, with periodic edges: (B, C, H, W) or, decimated, half of it each."""
        gap = 2**level if self.stationary else 1
        low, high = (self._filtered(image, taps, gap, -1) for taps in (self.low, self.high))
        ll, lh = (self._filtered(low, taps, gap, -2) for taps in (self.low, self.high))
        hl, hh = (self._filtered(high, taps, gap, -2) for taps in (self.low, self.high))
        return ll, lh, hl, hh

    def _filtered(self, image: Tensor, taps: Tensor, gap: int, axis: int) -> Tensor:
        """Convolve along an axis with a filter with ``gap`` - 1 zeros between its taps; decimate if not stationary."""
        count, span = image.shape[1], (len(taps) - 1) * gap
        before = len(taps) // 2 * gap - (0 if self.stationary else 1)  # as PyWavelets in mode "periodization"
        positions = torch.arange(-before, image.shape[axis] + span - before, device=image.device) % image.shape[axis]
        padded = image.index_select(image.ndim + axis, positions)
        kernel = taps.flip(0).to(image.dtype).expand(count, 1, -1)
        kernel = kernel[:, :, None, :] if axis == -1 else kernel[:, :, :, None]
        step, dilation = 1 if self.stationary else 2, (1, gap) if axis == -1 else (gap, 1)
        stride = (1, step) if axis == -1 else (step, 1)
        return F.conv2d(padded, kernel, stride=stride, dilation=dilation, groups=count)
