"""Super-resolution of really degraded images, stage 1: fidelity losses towards the (sharpened) GT.

The degradation is data (``safmn.degradations``): a batch comes with ``lq``, ``gt`` and, where asked for, ``gt_usm``. Of
pairs (any other data set) the GT is sharpened here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from safmn.registry import MODEL_REGISTRY, OURS
from safmn.training.models.base_model import Batch, StepResult, reconstruction_losses, target_of
from safmn.training.models.sr_model import SRModel


@MODEL_REGISTRY.register()
class RealSRModel(SRModel):
    """L1 and FFT loss towards the GT, sharpened where ``gt_usm`` or ``l1_gt_usm`` is true (Real-ESRGAN, 2107.10833).

    A teacher's output takes the place of both; it is never sharpened.
    """

    degrades = True

    @property
    def _sharpened(self) -> bool:
        keys = self.options.degradation
        return bool(keys.get("gt_usm") or keys.get("l1_gt_usm"))

    def training_step(self, batches: Sequence[Batch], iteration: int) -> StepResult:
        """As :class:`SRModel`'s; GTs are sharpened before a teacher's output replaces some of them."""
        if self._teacher and self._sharpened:
            batches = [{**batch, "gt_usm": target_of(batch, sharpened=True)} for batch in batches]
        return super().training_step(batches, iteration)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        output = self._predict(self.net_g, batch["lq"])  # (B, 3, s*h, s*w)
        return reconstruction_losses(self.criteria, output, target_of(batch, sharpened=self._sharpened)) | (
            self._flat_loss(batch)
        )


@MODEL_REGISTRY.register(suffix=OURS)
class RealESRNetModel(RealSRModel):
    """Real-ESRGAN's name for stage 1: its option files run unchanged."""
