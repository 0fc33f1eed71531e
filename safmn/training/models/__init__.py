"""Models: networks, losses and training steps. Importing this package registers them in BasicSR's MODEL_REGISTRY."""

from __future__ import annotations

from safmn.training.models import others as others
from safmn.training.models.base_model import Batch, Model, StepResult
from safmn.training.models.real_gan_model import ESRGANModel, RealESRGANModel, RealGANModel, SRGANModel
from safmn.training.models.real_sr_model import RealESRNetModel, RealSRModel
from safmn.training.models.sr_model import SRModel, SwinIRModel

__all__ = [
    "Batch",
    "ESRGANModel",
    "Model",
    "RealESRGANModel",
    "RealESRNetModel",
    "RealGANModel",
    "RealSRModel",
    "SRGANModel",
    "SRModel",
    "StepResult",
    "SwinIRModel",
]
