"""The drawn images of :mod:`safmn.data.drawing` as a data set: no files, and no two training samples are the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
import torch

from safmn.data.drawing import draw, shares_of
from safmn.data.made_lq import MadeLQ
from safmn.data.options import CropOptions, read_options
from safmn.data.sample_keys import Sample, SampleKey, sample_rng
from safmn.degradations import apply_recipe, draw_recipe, make_pair, parse_options
from safmn.degradations.apply import DegradedPair
from safmn.degradations.keys import BlurKeys
from safmn.degradations.operations import from_uint8
from safmn.degradations.options import with_patch
from safmn.errors import OptionError
from safmn.imaging import to_tensor
from safmn.registry import DATASET_REGISTRY
from safmn.value_types import Array

_VALIDATION_SEED = 0
_VALIDATION_SIDE = 128  # LR pixels


class DrawnOptions(CropOptions, frozen=True, kw_only=True):
    """Keys of :class:`DrawnImages`.

    Attributes:
        kinds: Relative weight of each kind: flat, edges, gradient, text, icons, screen, chart, halftone, leaves,
            facade, manga, page, window. null: all kinds with the weights of :data:`safmn.data.drawing.KINDS`.
        length: Images per epoch; for validation, the number of images.
        lq: Noise and JPEG for the LQ images, as for ``PairedImageDataset``: ``noise``, ``grey_noise``, ``jpeg``.
    """

    kinds: dict[str, float] | None = None
    length: Annotated[int, msgspec.Meta(ge=1)] = 1000
    lq: MadeLQ | None = None


class DegradedDrawnOptions(BlurKeys, frozen=True, kw_only=True):
    """Keys of :class:`DegradedDrawings`; those of the blur are documented in :class:`BlurKeys`.

    Attributes:
        type: Name of the data set class.
        name: Name of the data set in logs and tables.
        phase: Set by SAFMN from the section's name.
        scale: Set by SAFMN from the option file's ``scale``.
        kinds: Relative weight of each kind, as for ``DrawnImages``.
        length: Images per epoch; for validation, the number of images.
    """

    type: str
    name: str = ""
    phase: Literal["train", "val", "test"] = "train"
    scale: int = 1
    kinds: dict[str, float] | None = None
    length: Annotated[int, msgspec.Meta(ge=1)] = 1000


def _shares(options: DrawnOptions | DegradedDrawnOptions) -> tuple[list[str], Array]:
    """Return the names and the probabilities of the kinds; an error names the data set."""
    try:
        return shares_of(options.kinds)
    except OptionError as error:
        raise OptionError(f"data set {options.name!r}: {error}") from error


def _image_names(names: list[str], probabilities: Array) -> list[str]:
    return [f"drawn_{name}" for name, share in zip(names, probabilities, strict=True) if share]


class DrawnDataset(torch.utils.data.Dataset[Sample]):
    """What data sets of drawings share: a length of their own, and fixed images for validation.

    A subclass has ``options`` with ``length``, and ``sample()``.
    """

    options: Any

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Draw a pair from ``rng``."""
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self.options.length)

    def __getitem__(self, index: int) -> Sample:
        """Return validation pair ``index``, drawn from seed 0, epoch 0 and the index."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self.sample(index, sample_rng(_VALIDATION_SEED, SampleKey(0, index)))
        name = f"{sample['gt_path']}_{index:04}"
        return {**sample, "lq_path": name, "gt_path": name}


@DATASET_REGISTRY.register()
class DrawnImages(DrawnDataset):
    """Drawings (flat colours, text, screens, dead leaves, facades, ...) and their MATLAB-exact bicubic reductions.

    ``lq`` adds noise and JPEG compression to the reductions.

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
        self._names, self._probabilities = _shares(self.options)
        training = self.options.phase == "train"
        self.lq_patch = self.options.lq_patch if training else _VALIDATION_SIDE

    def image_names(self) -> list[str]:
        """Return the names that samples may have, one for each kind that is drawn."""
        return _image_names(self._names, self._probabilities)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Draw a pair from ``rng``; ``index`` is not used.

        Returns:
            ``lq`` (3, p, p) and ``gt`` (3, s*p, s*p), float32 in [0, 1]; ``lq_path`` and ``gt_path``:
            ``drawn_<kind>``.
        """
        scale = self.options.scale
        kind, gt = draw(rng, self.lq_patch * scale, self._names, self._probabilities)
        path = f"drawn_{kind}"
        lq = (self.options.lq or MadeLQ()).whole(gt, scale, rng)
        return {"lq": to_tensor(lq), "gt": to_tensor(gt), "lq_path": path, "gt_path": path}


@DATASET_REGISTRY.register()
class DegradedDrawings(torch.utils.data.Dataset[Sample]):
    """Drawings that are degraded like the photographs of :class:`RealESRGANDataset`: for real-world models.

    Without them a network learns that what is compressed or noisy is a photograph, and colours grey text. For
    validation, LQ images have 128 pixels a side, and image i is always the same.

    Args:
        opt: the data set's section of the option file, with ``phase`` and ``scale``; and under ``degradation`` the
            degradation keys outside the section.

    Attributes:
        degrades: tells the builder of data sets to pass ``degradation``.

    Raises:
        OptionError: a key is missing or wrong.
    """

    OPTIONS: ClassVar[type[DegradedDrawnOptions]] = DegradedDrawnOptions
    degrades: ClassVar[bool] = True

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options: DegradedDrawnOptions = read_options(self.OPTIONS, opt)
        self._names, self._probabilities = _shares(self.options)
        where = f"datasets.{self.options.phase}"
        self.degradation = parse_options(opt.get("degradation", {}), opt, scale=self.options.scale, where=where)
        if self.degradation.mode != "per_sample":
            raise OptionError(f"data set {self.options.name!r}: DegradedDrawings needs degradation: mode: per_sample")

    def with_gt_size(self, gt_size: int) -> DegradedDrawings:
        """Return the same data set with GT patches of another size."""
        other = copy.copy(self)
        other.degradation = with_patch(self.degradation, gt_size)
        return other

    def __len__(self) -> int:
        return self.options.length

    def image_names(self) -> list[str]:
        """Return the names that samples may have, one for each kind that is drawn."""
        return _image_names(self._names, self._probabilities)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Draw an image and its degradation from ``rng``; ``index`` is not used.

        Returns:
            ``lq`` (3, p, p) and ``gt`` (3, gt_size, gt_size), float32 in [0, 1]; ``gt_usm``, the sharpened GT, if the
            options ask for it; ``lq_path`` and ``gt_path``: ``drawn_<kind>``.
        """
        recipe = draw_recipe(self.degradation, rng)
        kind, image = draw(rng, self.degradation.crop_size, self._names, self._probabilities)
        return _as_sample(make_pair(recipe, image, sharpened=self.degradation.needs_sharpened), f"drawn_{kind}")

    def __getitem__(self, index: int) -> Sample:
        """Return validation pair ``index``, a whole drawing, degraded with seed 0, epoch 0 and the index."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = sample_rng(_VALIDATION_SEED, SampleKey(0, index))
        recipe = draw_recipe(self.degradation, rng)
        kind, image = draw(rng, _VALIDATION_SIDE * self.options.scale, self._names, self._probabilities)
        gt = from_uint8(image)
        return _as_sample(DegradedPair(apply_recipe(recipe, gt), gt, None), f"drawn_{kind}_{index:04}")


def _as_sample(pair: DegradedPair, name: str) -> Sample:
    """Return the sample of a pair of (H, W, 3) images; an image that is None is left out."""
    images = {
        key: torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        for key, image in pair._asdict().items()
        if image is not None
    }
    return {**images, "lq_path": name, "gt_path": name}
