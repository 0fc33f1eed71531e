"""Real-world super-resolution, stage 1: fidelity losses towards the GT or the sharpened GT.

The data set degrades the images (``safmn.degradations``). A batch has ``lq``, ``gt`` and, if requested, ``gt_usm``, the
sharpened GT. For other data sets of pairs, the GT is sharpened here.
"""

from __future__ import annotations

from collections.abc import Sequence

from safmn.registry import MODEL_REGISTRY, OURS
from safmn.training.models.base_model import Batch, Criterion, StepResult, target_of
from safmn.training.models.sr_model import SRModel


@MODEL_REGISTRY.register()
class RealSRModel(SRModel):
    """Losses towards the GT or the sharpened GT, as in stage 1 of Real-ESRGAN (arXiv 2107.10833).

    The GT is sharpened if ``gt_usm`` or ``l1_gt_usm`` is true, unless a loss says itself whether to sharpen it. The
    output of a teacher replaces both the GT and the sharpened GT; it is never sharpened.
    """

    degrades = True

    def training_step(self, batches: Sequence[Batch], iteration: int) -> StepResult:
        """Run the step of :class:`SRModel`, but sharpen the GTs before a teacher's output replaces some of them."""
        if self._teacher and any(map(self._sharpened, self.criteria)):
            batches = [{**batch, "gt_usm": target_of(batch, sharpened=True)} for batch in batches]
        return super().training_step(batches, iteration)

    def _sharpened(self, criterion: Criterion) -> bool:
        keys = self.options.degradation
        published = keys.get("gt_usm") or keys.get("l1_gt_usm")
        return bool(published if criterion.sharpened is None else criterion.sharpened)


@MODEL_REGISTRY.register(suffix=OURS)
class RealESRNetModel(RealSRModel):
    """Real-ESRGAN's name for stage 1, so that its option files run unchanged."""
