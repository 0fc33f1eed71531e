"""Image quality metrics. Importing this package registers SAFMN's metrics; BasicSR's (NIQE, ...) stay available."""

from __future__ import annotations

from safmn.evaluation.published import network_name, published
from safmn.metrics import learned as learned
from safmn.metrics import of_sets as of_sets
from safmn.metrics.fidelity import calculate_max_error, calculate_psnr, calculate_ssim, psnr, ssim
from safmn.metrics.set_metric import SetMetric

__all__ = [
    "SetMetric",
    "calculate_max_error",
    "calculate_psnr",
    "calculate_ssim",
    "network_name",
    "psnr",
    "published",
    "ssim",
]
