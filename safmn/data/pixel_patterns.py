"""Patterns of single pixels as a data set: sharper than any image that was shrunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from safmn.data.drawing.pixels import enlarged_pixels, pixel_pattern
from safmn.data.drawn import DrawnDataset
from safmn.data.options import CropOptions, read_options
from safmn.data.sample_keys import Sample
from safmn.imaging import to_tensor
from safmn.registry import DATASET_REGISTRY

_NAME = "pixel_pattern"
_VALIDATION_SIDE = 64  # LR pixels


class PixelPatternOptions(CropOptions, frozen=True, kw_only=True):
    """Keys of :class:`PixelPatterns`.

    Attributes:
        length: Images per epoch; for validation, the number of images.
    """

    length: Annotated[int, msgspec.Meta(ge=1)] = 1000


@DATASET_REGISTRY.register()
class PixelPatterns(DrawnDataset):
    """Stripes, checks, dots, random pixels, dithering and sprites, and the same with larger pixels as GT.

    The LQ images are drawn, not shrunk, because shrinking would blur single pixels. Networks that have not been trained
    on such images may answer with other colours. A few per cent of the samples are enough.

    For training, each sample is drawn from a separate generator, so no epoch repeats another. For validation, LQ images
    have 64 pixels a side, and image i is always the same.

    Args:
        opt: the data set's section of the option file, with ``phase`` and ``scale``.

    Raises:
        OptionError: a key is missing or wrong.
    """

    OPTIONS: ClassVar[type[PixelPatternOptions]] = PixelPatternOptions

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options: PixelPatternOptions = read_options(self.OPTIONS, opt)
        self.lq_patch = self.options.lq_patch if self.options.phase == "train" else _VALIDATION_SIDE

    def image_names(self) -> list[str]:
        """Return the one name that all samples have."""
        return [_NAME]

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Draw a pair from ``rng``; ``index`` is not used.

        Returns:
            ``lq`` (3, p, p) and ``gt`` (3, s*p, s*p), float32 in [0, 1]; ``lq_path`` and ``gt_path``:
            ``pixel_pattern``.
        """
        lq = pixel_pattern(rng, self.lq_patch)
        gt = enlarged_pixels(lq, self.options.scale)
        return {"lq": to_tensor(lq), "gt": to_tensor(gt), "lq_path": _NAME, "gt_path": _NAME}
