"""Image quality measures. Importing this package registers ours, and BasicSR's (NIQE, ...) beside them."""

from __future__ import annotations

from safmn.evaluation.published import network_name, published
from safmn.metrics.fidelity import calculate_psnr, calculate_ssim, psnr, ssim

__all__ = ["calculate_psnr", "calculate_ssim", "network_name", "psnr", "published", "ssim"]
