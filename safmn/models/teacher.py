"""Knowledge distillation: targets that are another network's output (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import dataclasses
import logging
from fnmatch import fnmatchcase
from pathlib import PurePath

import torch
from torch import Tensor

from safmn import weights
from safmn.archs import SAFMN
from safmn.errors import OptionError
from safmn.models.trained_network import Batch, accelerated
from safmn.options.types import TeacherSection
from safmn.runtime.execution import Execution

logger = logging.getLogger(__name__)


class Teacher:
    """A network that stays as it is, and whose output takes the GT's place.

    Unlike a GT its output can be reached, so that gradients are small and quiet: in a few thousand iterations of small
    batches a network learns something new and does what it did on everything else.

    Args:
        section: ``train.teacher`` of the option file.
        scale: of the network that is trained.
        execution: device, precision and kernels of the run.

    Raises:
        OptionError: the teacher has another scale.
        WeightsError: its weights cannot be loaded.
    """

    def __init__(self, section: TeacherSection, scale: int, execution: Execution) -> None:
        network = weights.load_network(section.weights)
        if network.scale != scale:
            raise OptionError(
                f"{section.weights} is a network for scale {network.scale}, the option file's scale is {scale}"
            )
        native = execution.kernels == "native" and type(network) is SAFMN
        self._execution = dataclasses.replace(execution, compile=False, kernels="native" if native else "torch")
        network.to(execution.device, memory_format=execution.memory_format)  # type: ignore[call-overload]
        self._forward = accelerated(network, self._execution)
        self._except = section.except_images
        logger.info(
            "teacher: %s (%s, %s kernels)%s",
            section.weights,
            type(network).__name__,
            self._execution.kernels,
            f"; images named {self._except} keep their GT" if self._except else "",
        )

    @torch.no_grad()
    def targets(self, batch: Batch) -> Batch:
        """The batch with the teacher's output for ``gt`` (B, 3, s*h, s*w), float32; excepted images keep theirs."""
        own = self._own_target(batch)
        if own.all():
            return batch
        with self._execution.autocast():
            output = self._forward(batch["lq"]).float()
        return {**batch, "gt": torch.where(own.to(output.device)[:, None, None, None], batch["gt"], output)}

    def _own_target(self, batch: Batch) -> Tensor:
        """For each image whether its GT stays: bool, (B,)."""
        pattern = self._except
        names = [PurePath(path).name for path in batch["gt_path"]]
        return torch.tensor([pattern is not None and fnmatchcase(name, pattern) for name in names])
