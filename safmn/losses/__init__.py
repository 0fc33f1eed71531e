"""Training losses. Importing this package registers ours, and BasicSR's (L1, perceptual, GAN, ...) beside them."""

from __future__ import annotations

import basicsr.losses  # noqa: F401 - registers BasicSR's losses

from safmn.losses.fft_loss import FFTLoss

__all__ = ["FFTLoss"]
