"""Progressive training: stages with patches and batches of different sizes, as in Restormer (arXiv 2111.09881, 3.3)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import torch

from safmn.data.options import CropOptions
from safmn.errors import DataError

LISTS = ("gt_sizes", "mini_batch_sizes", "iters")
"""Keys of the training set; together they describe the stages."""
_STREAM = 0x57A6  # separates the places of cut patches from all other draws
_CUT = ("lq", "gt", "gt_usm")


class Stage(NamedTuple):
    """Iterations that have the same sizes.

    Attributes:
        first, last: the first and the last iteration, from 1; ``last`` is None for the last stage.
        gt_size: side of the GT patches; None: that of the data set.
        batch_size: samples per rank and micro-batch.
    """

    first: int
    last: int | None
    gt_size: int | None
    batch_size: int

    def __str__(self) -> str:
        patches = "" if self.gt_size is None else f"GT patches of {self.gt_size} pixels, "
        return f"{patches}batches of {self.batch_size}"


def largest_patch(section: Mapping[str, Any]) -> int | None:
    """Return ``gt_size`` of a training set's section, or that at the top level of Real-ESRGAN's files; or None."""
    size: int | None = section.get("gt_size") or (section.get("degradation") or {}).get("gt_size")
    return size


def stages_of(section: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of a training set's section, one if it has none of the keys :data:`LISTS`.

    As in Restormer, ``gt_size`` and ``batch_size_per_gpu`` are upper limits, and the last stage lasts until the end.
    """
    batch, limit = section["batch_size_per_gpu"], largest_patch(section)
    lengths = section.get("iters") or []
    if not lengths:
        return [Stage(1, None, None, batch)]
    ends = list(itertools.accumulate(lengths))
    sizes = [size if limit is None else min(size, limit) for size in section.get("gt_sizes") or []]
    return [
        Stage(
            first=end - length + 1,
            last=end if number < len(lengths) - 1 else None,
            gt_size=sizes[number] if sizes else None,
            batch_size=min(batch, (section.get("mini_batch_sizes") or [batch] * len(lengths))[number]),
        )
        for number, (length, end) in enumerate(zip(lengths, ends, strict=True))
    ]


def patch_sizes(section: Mapping[str, Any]) -> list[int | None]:
    """Return the side of the GT patches of each stage; None where the section does not say it."""
    limit = largest_patch(section)
    return [limit if stage.gt_size is None else stage.gt_size for stage in stages_of(section)]


def heaviest(section: Mapping[str, Any]) -> Stage:
    """Return the stage whose batches have the most pixels."""
    limit = largest_patch(section) or 1
    return max(stages_of(section), key=lambda stage: stage.batch_size * (stage.gt_size or limit) ** 2)


def of_size(dataset: Any, gt_size: int | None) -> Any:
    """Return a copy of a data set that makes GT patches of this size.

    Data sets whose size cannot be set are returned as they are: they have neither a method ``with_gt_size`` nor
    ``options`` that are :class:`CropOptions`. Their patches are cut afterwards, by :func:`cut_patches`.
    """
    if gt_size is None:
        return dataset
    if hasattr(dataset, "with_gt_size"):
        return dataset.with_gt_size(gt_size)
    if not isinstance(getattr(dataset, "options", None), CropOptions):
        return dataset
    other = copy.copy(dataset)
    other.options = msgspec.structs.replace(dataset.options, gt_size=gt_size)
    if hasattr(other, "lq_patch"):
        other.lq_patch = other.options.lq_patch
    return other


def cut_patches(batch: Mapping[str, Any], keys: Sequence[Any], seed: int, gt_size: int) -> dict[str, Any]:
    """Cut GT patches of ``gt_size`` pixels, and the LQ patches that belong to them, out of larger ones.

    For data sets that do not draw patches of a given size. The places are a function of (seed, epoch, index).

    Args:
        batch: ``lq`` (B, C, h, w), ``gt`` and maybe ``gt_usm`` (B, C, s*h, s*w).
        keys: the :class:`~safmn.data.sample_keys.SampleKey` of each sample.

    Raises:
        DataError: the patches are smaller, or ``gt_size`` is not a multiple of the scale.
    """
    height, width = batch["gt"].shape[-2:]
    if height == width == gt_size:
        return dict(batch)
    low_height, low_width = batch["lq"].shape[-2:]
    scale = height // low_height
    side, rest = divmod(gt_size, scale)
    if rest or side > min(low_height, low_width):
        raise DataError(
            f"datasets.train.gt_sizes: {gt_size} cannot be cut from the GT patches of {width}x{height} pixels that the "
            f"training set gives (scale {scale})"
        )
    cut: dict[str, list[torch.Tensor]] = {name: [] for name in _CUT if name in batch}
    for number, key in enumerate(keys):
        sequence = np.random.SeedSequence([seed, key.epoch, key.index], spawn_key=(_STREAM,))
        rng = np.random.Generator(np.random.Philox(sequence))
        top, left = (int(rng.integers(edge - side + 1)) for edge in (low_height, low_width))
        for name, images in cut.items():
            factor = 1 if name == "lq" else scale
            rows, columns = (slice(start * factor, (start + side) * factor) for start in (top, left))
            images.append(cast(torch.Tensor, batch[name])[number, :, rows, columns])
    return {**batch, **{name: torch.stack(images) for name, images in cut.items()}}
