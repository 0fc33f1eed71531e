"""GT images that are degraded while they are loaded: training data for real-world models."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from safmn.data.options import read_options
from safmn.data.sample_keys import Batch, Sample, SampleKey, sample_rng
from safmn.data.sources import DiskReader, LmdbReader, Reader, StoreReader, list_images, names_from_meta_info
from safmn.data.store_format import CheckSource
from safmn.degradations import DegradationOptions, apply_recipe, draw_recipe, make_pair, parse_options
from safmn.degradations.apply import DegradedPair
from safmn.degradations.keys import BlurKeys
from safmn.degradations.operations import from_uint8
from safmn.degradations.options import with_patch
from safmn.degradations.pool import pooled
from safmn.errors import DataError, OptionError
from safmn.imaging import mod_crop
from safmn.imaging.file_names import image_name
from safmn.registry import DATASET_REGISTRY, OURS
from safmn.value_types import Array

logger = logging.getLogger(__name__)

_VALIDATION_SEED = 0


class GtBackend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the GT images are stored: as files in a folder, in an lmdb, or in the patch store ``dataroot_gt``."""

    type: Literal["disk", "lmdb", "store"] = "disk"
    check_source: CheckSource = "always"  # when to refuse a store with changed source images


class RealESRGANOptions(BlurKeys, frozen=True, kw_only=True):
    """Keys of :class:`RealESRGANDataset`; those of the blur are documented in :class:`BlurKeys`.

    Attributes:
        type: Name of the data set class.
        name: Name of the data set in logs and tables.
        phase: Set by SAFMN from the section's name.
        scale: Set by SAFMN from the option file's ``scale``.
        dataroot_gt: Folder of the GT images, an lmdb, or a patch store.
        meta_info: A text file that lists the images to use; null: all images of the folder.
        io_backend: ``{type: disk}``, ``{type: lmdb}`` or ``{type: store}``; a store also takes ``check_source``.
    """

    type: str
    name: str = ""
    phase: Literal["train", "val", "test"] = "train"
    scale: int = 1
    dataroot_gt: str
    meta_info: str | None = None
    io_backend: GtBackend = GtBackend()


@DATASET_REGISTRY.register(suffix=OURS)
class RealESRGANDataset(torch.utils.data.Dataset[Sample]):
    """GT images and degraded versions of them, with the random recipes of :mod:`safmn.degradations`.

    The degradation is that of Real-ESRGAN (arXiv 2107.10833). For training, ``sample`` cuts a square of ``crop_size``
    (400) pixels, degrades it, and cuts the patch from the pair. For validation, ``dataset[index]`` is the whole image
    and its degraded version, always with the same recipe.

    Args:
        opt: the data set's section of the option file, keys as in BasicSR, with ``phase`` and ``scale``; and under
            ``degradation`` the degradation keys outside the section
            (:class:`safmn.degradations.keys.DegradationKeys`).

    Attributes:
        degrades: tells the builder of data sets to pass ``degradation``.

    Raises:
        OptionError: a key is missing or wrong.
        DataError: the folder or an image is missing (raised here); an image is unreadable (raised when it is read).
    """

    OPTIONS: ClassVar[type[RealESRGANOptions]] = RealESRGANOptions
    degrades: ClassVar[bool] = True

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options: RealESRGANOptions = read_options(self.OPTIONS, opt)
        self.degradation = self._read_degradation(opt)
        self.reader: Reader = DiskReader()
        try:
            self.paths = self._find()
        except DataError as error:
            raise DataError(f"data set {self.options.name!r}: {error}") from error

    def _read_degradation(self, opt: Mapping[str, Any]) -> DegradationOptions:
        if "degradation" not in opt:
            raise OptionError(
                f"data set {self.options.name!r}: the key 'degradation' is missing; it holds the degradation keys "
                "from outside the data set's section (resize_prob, noise_range, ...). {} means the published values."
            )
        degradation = opt["degradation"]
        is_training = self.options.phase == "train"
        if is_training and "queue_size" in degradation and degradation.get("mode", "per_sample") == "per_sample":
            logger.info(
                "queue_size has no effect: every sample draws its own degradation (for the published pool: "
                "`degradation: {mode: batch_pool}`, and queue_size a multiple of batch_size_per_gpu)"
            )
        return parse_options(degradation, opt, scale=self.options.scale, where=f"datasets.{self.options.phase}")

    def _find(self) -> list[str]:
        folder, names, backend = self.options.dataroot_gt, self.options.meta_info, self.options.io_backend
        if backend.type != "disk" and names is not None:
            logger.warning("data set %r: meta_info has no effect with io_backend %s", self.options.name, backend.type)
        if backend.type == "lmdb":
            self.reader = lmdb = LmdbReader(folder)
            return sorted(lmdb.keys())
        if backend.type == "store":
            self.reader = store = StoreReader(folder, backend.check_source, self.options.name)
            return store.names
        if names is None:
            return [os.path.join(folder, name) for name in list_images(folder)]
        paths = [os.path.join(folder, name) for name in names_from_meta_info(names)]
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise DataError(f"{len(missing)} images that {names} lists are not in {folder}, the first is {missing[0]}")
        return paths

    def with_gt_size(self, gt_size: int) -> RealESRGANDataset:
        """Return the same data set with GT patches of another size."""
        other = copy.copy(self)
        other.degradation = with_patch(self.degradation, gt_size)
        return other

    def __len__(self) -> int:
        return len(self.paths)

    def image_names(self) -> list[str]:
        """Return the names of the GT images, without folder and ending, in the order of their indices."""
        return [image_name(path) for path in self.paths]

    def sample(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator | None = None) -> Sample:
        """Return a training sample of image ``index``.

        Args:
            index: number of the image.
            rng: generator for the draws of this sample.
            batch_rng: generator for the draws that ``mode: batch_pool`` makes once per batch.

        Returns:
            ``lq`` (3, p, p) and ``gt`` (3, gt_size, gt_size), float32 in [0, 1]; ``gt_usm``, the sharpened GT, if the
            options ask for it; ``gt_path``.
        """
        recipe = draw_recipe(self.degradation, rng, batch_rng)
        image = self.reader.read(self.paths[index])
        return self._sample(make_pair(recipe, image, sharpened=self.degradation.needs_sharpened), index)

    def batch(self, keys: Sequence[Any], seed: int) -> Batch:
        """Return the samples of ``keys``, stacked (images) or listed (paths).

        Args:
            keys: :class:`SampleKey`, or the keys that :meth:`arrange` yields.
            seed: the run's seed.
        """
        samples = []
        for key in keys:
            rng = sample_rng(seed, SampleKey(key.epoch, key.index))
            samples.append(self.sample(key.index % len(self.paths), rng, self._batch_rng(keys, key, seed)))
        return default_collate(samples)  # type: ignore[no-any-return]

    def _batch_rng(self, keys: Sequence[Any], key: Any, seed: int) -> np.random.Generator | None:
        if self.degradation.mode == "per_sample":
            return None
        epoch, index = (key.batch_epoch, key.batch_index) if hasattr(key, "batch_epoch") else keys[0][:2]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, index], spawn_key=(0xBA7C,))))

    def arrange(
        self, keys: Callable[[int], Iterator[list[SampleKey]]], *, start: int, accumulate: int, seed: int
    ) -> Iterator[list[Any]]:
        """Yield keys in the order in which the loader loads them; ``mode: batch_pool`` passes them through the pool.

        Args:
            keys: ``keys(i)`` yields the keys of the micro-batches after iteration ``i``.
            start: the iteration after which to begin.
            accumulate: micro-batches per iteration.
            seed: the run's seed.
        """
        if self.degradation.mode == "per_sample":
            return keys(start)
        return pooled(keys(0), size=self.degradation.queue_size, seed=seed, skip=start * accumulate)

    def __getitem__(self, index: int) -> Sample:
        """Return a whole image for validation, degraded with the recipe of seed 0, epoch 0 and ``index``.

        Returns:
            ``gt`` (3, H, W), cropped to a multiple of the scale, and ``lq`` (3, H / scale, W / scale), float32 in
            [0, 1]; ``gt_path`` and ``lq_path``.
        """
        recipe = draw_recipe(self.degradation, sample_rng(_VALIDATION_SEED, SampleKey(0, index)))
        gt = from_uint8(np.ascontiguousarray(mod_crop(self.reader.read(self.paths[index]), self.options.scale)))
        return {**self._sample(DegradedPair(apply_recipe(recipe, gt), gt, None), index), "lq_path": self.paths[index]}

    def _sample(self, pair: DegradedPair, index: int) -> Sample:
        images = {name: _planes(image) for name, image in pair._asdict().items() if image is not None}
        return {**images, "gt_path": self.paths[index]}


def _planes(image: Array) -> Tensor:
    """Convert an (H, W, 3) array to a contiguous (3, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
