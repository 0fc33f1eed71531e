"""Paired super-resolution: losses between the network's output and the GT."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from safmn.data.collating import image_of
from safmn.errors import OptionError, located
from safmn.registry import MODEL_REGISTRY, OURS
from safmn.runtime.cuda_graph import GraphedStep
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.training.models.base_model import Batch, Model, StepResult, joined
from safmn.training.models.flat_areas import FlatAreas, draw_colours
from safmn.training.models.teacher import Teacher

if TYPE_CHECKING:
    from safmn.options import Options


@MODEL_REGISTRY.register(suffix=OURS)
class SRModel(Model):
    """BasicSR's ``SRModel`` with the FFT loss of SAFMN (arXiv 2302.13800, eq. 9) and an optional teacher.

    Raises:
        OptionError: the option file has no loss.
    """

    has_discriminator = False
    takes_teacher = True

    def __init__(self, options: Options, execution: Execution, ranks: Ranks) -> None:
        super().__init__(options, execution, ranks)
        if not self.criteria:
            raise OptionError(f"{options.source}: train has no loss; add one to train.losses")
        self.net_g = self._add_network("net_g", options.network_g)
        with located(f"{options.source}: train.teacher.weights"):
            self._teacher = Teacher(self.train.teacher, options.scale, execution) if self.train.teacher else None
        self._flat_areas = FlatAreas(self.net_g.whole) if self.train.flat_areas else None
        self._graphed = GraphedStep(self._step) if execution.cuda_graph else None

    def training_step(self, batches: Sequence[Batch], iteration: int) -> StepResult:
        """Run one iteration: teacher, forward, losses, backward and update."""
        if self._teacher:
            batches = [self._teacher.targets(batch) for batch in batches]
        batches = [self._with_colours(batch, iteration, number) for number, batch in enumerate(batches)]
        return self._graphed(batches) if self._graphed else self._step(batches)

    def _with_colours(self, batch: Batch, iteration: int, number: int) -> Batch:
        """Return the batch with random colours for :class:`FlatAreas`, if ``train.flat_areas`` is set.

        The colours depend on seed, iteration, rank and number of the micro-batch only.
        """
        section = self.train.flat_areas
        if section is None:
            return batch
        seeds = (self.options.manual_seed, iteration, self.ranks.rank, number)
        return {**batch, "flat": draw_colours(section.colours, *seeds).to(self.execution.device)}

    def _flat_loss(self, batch: Batch) -> dict[str, Tensor]:
        if self._flat_areas is None or self.train.flat_areas is None:
            return {}
        with self.execution.autocast():
            loss = self._flat_areas.loss(self.net_g.whole, batch["flat"])
        return {"l_flat": self.train.flat_areas.loss_weight * loss}

    def fingerprints(self) -> dict[str, str]:
        """Return a hash of the teacher's weights, if there is a teacher."""
        return {"train.teacher.weights": self._teacher.fingerprint()} if self._teacher else {}

    def load_state(self, state: Mapping[str, Mapping[str, Any]], *, new_optimizers: Collection[str] = ()) -> None:
        """Load what :meth:`state` returned, and discard a captured CUDA graph."""
        super().load_state(state, new_optimizers=new_optimizers)
        if self._graphed:
            self._graphed.reset()

    def _step(self, batches: Sequence[Batch]) -> StepResult:
        net_g = self.net_g
        for batch in net_g.micro_batches(batches, parts=len(batches)):
            output = self._predict(net_g, image_of(batch, "lq"))  # (B, 3, s*h, s*w)
            net_g.backward(joined(self._image_losses(batch, output), self._flat_loss(batch)))
        return StepResult(net_g.losses, net_g.update())


@MODEL_REGISTRY.register(suffix=OURS)
class SwinIRModel(SRModel):
    """BasicSR's name for SwinIR's model, so that its option files run unchanged."""
