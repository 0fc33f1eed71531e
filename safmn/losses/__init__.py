"""Training losses. Importing this package registers SAFMN's losses; BasicSR's (L1, GAN, ...) stay available."""

from __future__ import annotations

from safmn.losses.fft_loss import FFTLoss
from safmn.losses.perceptual_loss import PerceptualLoss
from safmn.losses.psnr_loss import PSNRLoss

__all__ = ["FFTLoss", "PSNRLoss", "PerceptualLoss"]
