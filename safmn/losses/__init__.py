"""Training losses. Importing this package registers ours; BasicSR's (L1, GAN, ...) stand beside them."""

from __future__ import annotations

from safmn.losses.fft_loss import FFTLoss
from safmn.losses.perceptual_loss import PerceptualLoss

__all__ = ["FFTLoss", "PerceptualLoss"]
