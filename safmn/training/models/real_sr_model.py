"""Super-resolution of really degraded images, stage 1: fidelity losses towards the (sharpened) GT.

The degradation is data (``safmn.degradations``): a batch comes with ``lq``, ``gt`` and, where asked for, ``gt_usm``. Of
pairs (any other data set) the GT is sharpened here.
"""

from __future__ import annotations

from collections.abc import Sequence

from safmn.registry import MODEL_REGISTRY, OURS
from safmn.training.models.base_model import Batch, Criterion, StepResult, target_of
from safmn.training.models.sr_model import SRModel


@MODEL_REGISTRY.register()
class RealSRModel(SRModel):
    """L1 and FFT loss towards the GT, sharpened where ``gt_usm`` or ``l1_gt_usm`` is true (Real-ESRGAN, 2107.10833).

    A teacher's output takes the place of both; it is never sharpened.
    """

    degrades = True

    def training_step(self, batches: Sequence[Batch], iteration: int) -> StepResult:
        """As :class:`SRModel`'s; GTs are sharpened before a teacher's output replaces some of them."""
        if self._teacher and any(map(self._sharpened, self.criteria)):
            batches = [{**batch, "gt_usm": target_of(batch, sharpened=True)} for batch in batches]
        return super().training_step(batches, iteration)

    def _sharpened(self, criterion: Criterion) -> bool:
        keys = self.options.degradation
        published = keys.get("gt_usm") or keys.get("l1_gt_usm")
        return bool(published if criterion.sharpened is None else criterion.sharpened)


@MODEL_REGISTRY.register(suffix=OURS)
class RealESRNetModel(RealSRModel):
    """Real-ESRGAN's name for stage 1: its option files run unchanged."""
