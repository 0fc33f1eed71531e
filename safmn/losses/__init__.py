"""Training losses. Importing this package registers SAFMN's losses; BasicSR's (L1, GAN, ...) stay available."""

from __future__ import annotations

from safmn.losses.consistency_loss import ConsistencyLoss
from safmn.losses.contextual_loss import ContextualLoss
from safmn.losses.dists_loss import DISTSLoss
from safmn.losses.fft_loss import FFTLoss
from safmn.losses.focal_frequency_loss import FocalFrequencyLoss
from safmn.losses.gradient_map_loss import GradientMapLoss
from safmn.losses.lpips_loss import LPIPSLoss
from safmn.losses.ms_ssim_loss import MSSSIMLoss
from safmn.losses.perceptual_loss import PerceptualLoss
from safmn.losses.psnr_loss import PSNRLoss
from safmn.losses.wavelet_loss import WaveletLoss

__all__ = [
    "ConsistencyLoss",
    "ContextualLoss",
    "DISTSLoss",
    "FFTLoss",
    "FocalFrequencyLoss",
    "GradientMapLoss",
    "LPIPSLoss",
    "MSSSIMLoss",
    "PSNRLoss",
    "PerceptualLoss",
    "WaveletLoss",
]
