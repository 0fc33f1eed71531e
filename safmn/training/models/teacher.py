"""Knowledge distillation: another network's output as the target (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from fnmatch import fnmatchcase
from pathlib import PurePath

import torch
from torch import Tensor

from safmn import weights
from safmn.archs import SAFMN
from safmn.errors import OptionError
from safmn.imaging.file_names import image_name
from safmn.options.types import TeacherSection
from safmn.runtime.execution import Execution
from safmn.training.models.trained_network import Batch, accelerated

logger = logging.getLogger(__name__)


class Teacher:
    """A network that is not trained, and gives an output that replaces the GT.

    The trained network can reproduce this output, but it cannot reproduce a GT. Gradients are therefore small and have
    little noise. A few thousand iterations with small batches then teach the trained network something new without
    changing its output for other images.

    Args:
        section: ``train.teacher`` of the option file.
        scale: scale of the trained network.
        execution: device, precision and kernels of the run.

    Raises:
        OptionError: the teacher has another scale.
        WeightsError: the teacher's weights cannot be loaded.
    """

    def __init__(self, section: TeacherSection, scale: int, execution: Execution) -> None:
        try:
            network = weights.load_network(section.weights, scale=scale)
        except weights.OtherScaleError as error:
            raise OptionError(
                f"{section.weights} is a network for scale {error.found}, the option file's scale is {scale}"
            ) from error
        native = execution.kernels == "native" and type(network) is SAFMN
        self._execution = dataclasses.replace(execution, compile=False, kernels="native" if native else "torch")
        execution.place(network)
        self._forward = accelerated(network, self._execution)
        self._except = section.except_images
        logger.info(
            "teacher: %s (%s, %s kernels)%s",
            section.weights,
            type(network).__name__,
            self._execution.kernels,
            f"; images that match {self._except} keep their GT" if self._except else "",
        )

        self._network = network

    def fingerprint(self) -> str:
        """Return a hash of the teacher's weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def targets(self, batch: Batch) -> Batch:
        """Return the batch with the teacher's output, (B, 3, s*h, s*w) float32, as ``gt`` and, if present, ``gt_usm``.

        Excepted images keep their GT.
        """
        own = self._own_target(batch)
        if own is not None and own.all():
            return batch
        with self._execution.autocast():
            output = self._forward(batch["lq"]).float()
        targets = {name: output for name in ("gt", "gt_usm") if name in batch}
        if own is not None:
            keep = own.to(output.device)[:, None, None, None]
            targets = {name: torch.where(keep, batch[name], output) for name in targets}
        return {**batch, **targets}

    def _own_target(self, batch: Batch) -> Tensor | None:
        """Return for each image whether it keeps its GT, bool (B,); None if there is no pattern."""
        if self._except is None:
            return None
        if "gt_path" not in batch:
            raise OptionError("train.teacher.except_images needs a data set with a gt_path for each sample")
        return torch.tensor([is_excepted(path, self._except) for path in batch["gt_path"]])


def is_excepted(path: str, pattern: str) -> bool:
    """Return whether the name of a GT image matches the pattern ``except_images``.

    ``path`` may be an lmdb key, which has no file ending; the pattern's ending is then ignored.
    """
    name, bare = PurePath(path).name, image_name(path)
    return fnmatchcase(bare, pattern) or fnmatchcase(name, image_name(pattern) if name == bare else pattern)
