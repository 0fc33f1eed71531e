"""The drawn images of :mod:`safmn.data.drawing` as a data set: no files, and no two training samples are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import torch

from safmn.data.drawing import draw, shares_of
from safmn.data.options import CropOptions, read_options
from safmn.data.sample_keys import Sample, SampleKey, sample_rng
from safmn.errors import OptionError
from safmn.imaging import imresize, to_tensor
from safmn.registry import DATASET_REGISTRY

_VALIDATION_SEED = 0
_VALIDATION_SIDE = 128  # LR pixels


class DrawnOptions(CropOptions, frozen=True, kw_only=True):
    """Keys of :class:`DrawnImages`.

    Attributes:
        kinds: Relative weight of each kind: flat, edges, gradient, text, icons, screen, chart, halftone, leaves,
            facade, manga, page, window. null: all kinds with the weights of :data:`safmn.data.drawing.KINDS`.
        length: Images per epoch; for validation, the number of images.
    """

    kinds: dict[str, float] | None = None
    length: Annotated[int, msgspec.Meta(ge=1)] = 1000


@DATASET_REGISTRY.register()
class DrawnImages(torch.utils.data.Dataset[Sample]):
    """Drawings (flat colours, text, screens, dead leaves, facades, ...) and their MATLAB-exact bicubic reductions.

    For training, GT images have ``gt_size`` pixels a side, and each sample is drawn from a separate generator, so no
    epoch repeats another. For validation, LQ images have 128 pixels a side, and image i is always the same.

    Args:
        opt: the data set's section of the option file, with ``phase`` and ``scale``.

    Raises:
        OptionError: a key is missing or wrong.
    """

    OPTIONS: ClassVar[type[DrawnOptions]] = DrawnOptions

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options: DrawnOptions = read_options(self.OPTIONS, opt)
        try:
            self._names, self._probabilities = shares_of(self.options.kinds)
        except OptionError as error:
            raise OptionError(f"data set {self.options.name!r}: {error}") from error
        training = self.options.phase == "train"
        self.lq_patch = self.options.lq_patch if training else _VALIDATION_SIDE

    def __len__(self) -> int:
        return self.options.length

    def image_names(self) -> list[str]:
        """Return the names that samples may have, one for each kind that is drawn."""
        return [f"drawn_{name}" for name, share in zip(self._names, self._probabilities, strict=True) if share]

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Draw a pair from ``rng``; ``index`` is not used.

        Returns:
            ``lq`` (3, p, p) and ``gt`` (3, s*p, s*p), float32 in [0, 1]; ``lq_path`` and ``gt_path``:
            ``drawn_<kind>``.
        """
        scale = self.options.scale
        kind, gt = draw(rng, self.lq_patch * scale, self._names, self._probabilities)
        path = f"drawn_{kind}"
        return {"lq": to_tensor(imresize(gt, 1 / scale)), "gt": to_tensor(gt), "lq_path": path, "gt_path": path}

    def __getitem__(self, index: int) -> Sample:
        """Return validation pair ``index``, drawn from seed 0, epoch 0 and the index."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self.sample(index, sample_rng(_VALIDATION_SEED, SampleKey(0, index)))
        name = f"{sample['gt_path']}_{index:04}"
        return {**sample, "lq_path": name, "gt_path": name}
