"""Super-resolution of really degraded images, stage 1: fidelity losses towards the (sharpened) GT.

The degradation is data (``safmn.degradations``): a batch comes with ``lq``, ``gt`` and, where asked for, ``gt_usm``. Of
pairs (any other data set) the GT is sharpened here.
"""

from __future__ import annotations

from torch import Tensor

from safmn.registry import MODEL_REGISTRY, OURS
from safmn.training.models.base_model import Batch, reconstruction_losses, target_of
from safmn.training.models.sr_model import SRModel


@MODEL_REGISTRY.register()
class RealSRModel(SRModel):
    """L1 and FFT loss towards the GT, sharpened where ``gt_usm`` or ``l1_gt_usm`` is true (Real-ESRGAN, 2107.10833)."""

    degrades = True
    takes_teacher = False

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        output = self._predict(self.net_g, batch["lq"])  # (B, 3, s*h, s*w)
        keys = self.options.degradation
        sharpened = bool(keys.get("gt_usm") or keys.get("l1_gt_usm"))
        return reconstruction_losses(self.criteria, output, target_of(batch, sharpened=sharpened))


@MODEL_REGISTRY.register(suffix=OURS)
class RealESRNetModel(RealSRModel):
    """Real-ESRGAN's name for stage 1: its option files run unchanged."""
