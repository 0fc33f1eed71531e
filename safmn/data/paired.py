"""Data sets of GT/LQ image pairs and of LQ images only, with the option keys of BasicSR."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from safmn.data.made_lq import MadeLQ
from safmn.data.options import CommonOptions, CropOptions, IoBackend, read_options
from safmn.data.sample_keys import Patch, Sample, draw_patch
from safmn.data.sources import (
    DiskReader,
    LmdbReader,
    Pair,
    Reader,
    check_alpha,
    check_sizes,
    list_images,
    names_from_meta_info,
    pairs_from_folders,
    pairs_from_lmdb,
    pairs_from_meta_info,
)
from safmn.errors import DataError, OptionError
from safmn.imaging import augment, mod_crop, rgb_to_y, to_tensor
from safmn.imaging.file_names import image_name
from safmn.registry import DATASET_REGISTRY, OURS
from safmn.runtime.random_state import named_rng
from safmn.value_types import PositiveFloat

logger = logging.getLogger(__name__)


def _say_unread(meta_info_file: str | None, set_name: str) -> None:
    """Warn about a ``meta_info_file`` beside an lmdb: all images of an lmdb are used, as in BasicSR."""
    if meta_info_file is not None:
        logger.warning("data set %r: meta_info_file has no effect with io_backend lmdb", set_name)


class PairedOptions(CropOptions, frozen=True, kw_only=True):
    """Keys of :class:`PairedImageDataset`.

    Attributes:
        dataroot_gt: Folder of the GT images, a list of folders, or an lmdb.
        dataroot_lq: Folder of the LQ images, a list with as many folders, or an lmdb; null: LQ images are made from the
            GT images, by MATLAB-exact bicubic reduction and what ``lq`` adds.
        lq: With ``dataroot_lq: null``: ``noise`` (a standard deviation of 0 to 255, or a range), ``grey_noise`` (a
            probability) and ``jpeg`` (a quality, or a range) of the LQ images; ``enlarge: true`` enlarges GT images
            that are smaller than ``gt_size``, instead of refusing them.
        meta_info_file: A text file that lists the GT images to use; null: all images of the folder.
        filename_tmpl: Name of an LQ image, where ``{}`` is the name of its GT image, both without file ending; for
            example ``{}x4``.
        io_backend: ``{type: disk}`` for folders, ``{type: lmdb}`` for lmdbs.
        color: null or ``rgb``: three channels; ``y``: the Y channel only (BT.601, 16/255 to 235/255); ``grey``: one
            channel as stored; ``rgba``: four channels as stored. Images of 16 bits keep their depth.
        mean: One number per channel, subtracted from the values in [0, 1].
        std: One number per channel; values are divided by it after the subtraction.
    """

    dataroot_gt: str | list[str]
    dataroot_lq: str | list[str] | None
    lq: MadeLQ | None = None
    meta_info_file: str | None = None
    filename_tmpl: str = "{}"
    io_backend: IoBackend = IoBackend()
    color: Literal["y", "rgb", "grey", "rgba"] | None = None
    mean: list[float] | None = None
    std: list[PositiveFloat] | None = None


class SingleOptions(CommonOptions, frozen=True, kw_only=True):
    """Keys of :class:`SingleImageDataset`.

    Attributes:
        dataroot_lq: Folder of the LQ images, or an lmdb.
        meta_info_file: A text file that lists the images to use; null: all images of the folder.
        io_backend: ``{type: disk}`` for a folder, ``{type: lmdb}`` for an lmdb.
        color: null or ``rgb``: three channels; ``y``: the Y channel only (BT.601, 16/255 to 235/255); ``grey``: one
            channel as stored; ``rgba``: four channels as stored. Images of 16 bits keep their depth.
        mean: One number per channel, subtracted from the values in [0, 1].
        std: One number per channel; values are divided by it after the subtraction.
    """

    dataroot_lq: str
    meta_info_file: str | None = None
    io_backend: IoBackend = IoBackend()
    color: Literal["y", "rgb", "grey", "rgba"] | None = None
    mean: list[float] | None = None
    std: list[PositiveFloat] | None = None


def finish(image: np.ndarray, options: PairedOptions | SingleOptions) -> Tensor:
    """Convert (H, W, C), uint8 or uint16, to float32 (C, H, W) in [0, 1], then apply ``mean`` and ``std``.

    With ``color: y``, RGB becomes one channel.
    """
    if options.color == "y":
        levels = image if image.dtype == np.uint8 else image / 257.0  # 0 to 255
        tensor = torch.from_numpy((rgb_to_y(levels) / 255.0).astype(np.float32))[None]  # (1, H, W)
    else:
        tensor = to_tensor(image)
    if options.mean is not None:
        tensor = tensor.sub(torch.tensor(options.mean).view(-1, 1, 1))
    if options.std is not None:
        tensor = tensor.div(torch.tensor(options.std).view(-1, 1, 1))
    return tensor


def cut(image: np.ndarray, patch: Patch, side: int, factor: int) -> np.ndarray:
    """Cut ``side`` x ``side`` pixels at ``factor`` times the patch's position and augment them: (side, side, 3)."""
    top, left = patch.top * factor, patch.left * factor
    return augment(image[top : top + side, left : left + side], patch.hflip, patch.vflip, patch.rot90)


@DATASET_REGISTRY.register(suffix=OURS)
class PairedImageDataset(torch.utils.data.Dataset[Sample]):
    """GT and LQ images in two folders or two lmdbs, or GT images alone, from which LQ images are made.

    For training, ``sample`` cuts a random patch. ``dataset[index]`` is the whole pair, with the GT image cropped to
    ``scale`` times the size of the LQ image.

    Args:
        opt: the data set's section of the option file, with ``phase`` and ``scale``; keys as in BasicSR.

    Raises:
        OptionError: a key is missing or wrong.
        DataError: a folder is missing or the two folders do not hold the same images (raised here); an image is
            unreadable or the sizes of a pair do not fit (raised when it is read).
    """

    OPTIONS: ClassVar[type[PairedOptions]] = PairedOptions

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options: PairedOptions = read_options(self.OPTIONS, opt)
        self.gt_reader: Reader = DiskReader(getattr(self.options, "color", None))
        self.lq_reader: Reader = self.gt_reader
        try:
            self.pairs = self._find()
        except DataError as error:
            raise DataError(f"data set {self.options.name!r}: {error}") from error
        if self.options.phase == "train":
            self.lq_patch = self.options.lq_patch
        self._made: MadeLQ = getattr(self.options, "lq", None) or MadeLQ()

    def _find(self) -> list[Pair]:
        options = self.options
        if options.dataroot_lq is not None and options.lq is not None:
            raise OptionError(f"data set {options.name!r}: lq is for LQ images that are made; remove dataroot_lq")
        if isinstance(options.dataroot_gt, list) or isinstance(options.dataroot_lq, list):
            return self._find_in_lists(options.dataroot_gt, options.dataroot_lq)
        if options.dataroot_lq is None:
            return self._find_gt(options.dataroot_gt)
        if options.io_backend.type == "lmdb":
            _say_unread(options.meta_info_file, options.name)
            gt, lq = (LmdbReader(folder, options.color) for folder in (options.dataroot_gt, options.dataroot_lq))
            self.gt_reader, self.lq_reader = gt, lq
            return pairs_from_lmdb(gt, lq, options.filename_tmpl)
        if options.meta_info_file is not None:
            return pairs_from_meta_info(
                options.dataroot_gt, options.dataroot_lq, options.meta_info_file, options.filename_tmpl
            )
        return pairs_from_folders(options.dataroot_gt, options.dataroot_lq, options.filename_tmpl)

    def _find_in_lists(self, gt: str | list[str], lq: str | list[str] | None) -> list[Pair]:
        """Return the pairs of several folders, one after the other."""
        options, where = self.options, f"data set {self.options.name!r}"
        if options.io_backend.type != "disk" or options.meta_info_file is not None:
            raise OptionError(f"{where}: lists of folders work with io_backend disk and without meta_info_file")
        if lq is not None and (isinstance(gt, str) or isinstance(lq, str) or len(gt) != len(lq)):
            raise OptionError(f"{where}: dataroot_gt and dataroot_lq must be lists of equally many folders")
        if lq is None:
            return [pair for folder in gt for pair in self._find_gt(folder)]
        folders = zip(gt, lq, strict=True)
        return [pair for one, other in folders for pair in pairs_from_folders(one, other, options.filename_tmpl)]

    def _find_gt(self, folder: str) -> list[Pair]:
        """Return the GT images of a folder or an lmdb, each in the place of its LQ image, too."""
        options = self.options
        if options.io_backend.type == "lmdb":
            _say_unread(options.meta_info_file, options.name)
            self.gt_reader = reader = LmdbReader(folder, options.color)
            return [Pair(key, key) for key in sorted(reader.keys())]
        listed = options.meta_info_file
        names = list_images(folder) if listed is None else names_from_meta_info(listed)
        paths = [os.path.join(folder, name) for name in names]
        missing = [] if listed is None else [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise DataError(f"{listed} lists {missing[0]}, which does not exist")
        return [Pair(path, path) for path in paths]

    @property
    def makes_lq(self) -> bool:
        """Whether LQ images are made from the GT images."""
        return getattr(self.options, "dataroot_lq", "") is None

    @property
    def enlarges(self) -> bool:
        """Whether GT images that are smaller than the patch are enlarged."""
        return self._made.enlarge

    def __len__(self) -> int:
        return len(self.pairs)

    def image_names(self) -> list[str]:
        """Return the names of the GT images, without folder and ending, in the order of their indices."""
        return [image_name(pair.gt) for pair in self.pairs]

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray, Pair]:
        pair = self.pairs[index]
        gt, lq = self.gt_reader.read(pair.gt), self.lq_reader.read(pair.lq)
        check_sizes(gt, lq, self.options.scale, pair, training=self.options.phase == "train")
        if getattr(self.options, "color", None) == "rgba":
            check_alpha(gt, lq, pair)
        return gt, lq, pair

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a training sample of image ``index``; all draws come from ``rng``.

        Returns:
            ``lq`` (C, p, p) and ``gt`` (C, gt_size, gt_size), float32 in [0, 1]; ``lq_path``, ``gt_path``.
        """
        side, scale = self.lq_patch, self.options.scale
        lq: np.ndarray | None = None
        if self.makes_lq:
            pair = self.pairs[index]
            gt = self._made.enlarged(mod_crop(self.gt_reader.read(pair.gt), scale), side * scale)
            height, width = (edge // scale for edge in gt.shape[:2])
        else:
            gt, lq, pair = self._read(index)
            height, width = lq.shape[:2]
        if min(height, width) < side:
            raise DataError(
                f"{pair.lq} is {width}x{height}, smaller than the {side}x{side} crop. Remove it or lower gt_size."
            )
        patch = draw_patch(rng, height, width, side, self.options.use_hflip, self.options.use_rot)
        if lq is None:
            made = self._made.patch(gt, patch.top, patch.left, side, scale, rng)
            small = augment(made, patch.hflip, patch.vflip, patch.rot90)
        else:
            small = cut(lq, patch, side, 1)
        return self._sample(cut(gt, patch, side * scale, scale), small, pair)

    def __getitem__(self, index: int) -> Sample:
        """Return the whole pair: ``lq`` (C, h, w) and ``gt`` (C, scale*h, scale*w), float32 in [0, 1]; their paths.

        ``bits`` is the depth of the GT file, 8 or 16.
        """
        scale = self.options.scale
        if self.makes_lq:
            pair = self.pairs[index]
            gt = mod_crop(self.gt_reader.read(pair.gt), scale)
            lq = self._made.whole(gt, scale, named_rng(0, "lq", self.options.name, index))
        else:
            gt, lq, pair = self._read(index)
        sample = self._sample(gt[: lq.shape[0] * scale, : lq.shape[1] * scale], lq, pair)
        return {**sample, "bits": 8 * gt.itemsize}

    def _sample(self, gt: np.ndarray, lq: np.ndarray, pair: Pair) -> Sample:
        return {
            "lq": finish(lq, self.options),
            "gt": finish(gt, self.options),
            "lq_path": pair.lq,
            "gt_path": pair.gt,
        }


@DATASET_REGISTRY.register(suffix=OURS)
class SingleImageDataset(torch.utils.data.Dataset[Sample]):
    """LQ images without GT, for testing.

    Args:
        opt: the data set's section of the option file; keys as in BasicSR.

    Raises:
        OptionError: a key is missing or wrong.
        DataError: the folder or an image is missing (raised here); an image is unreadable (raised when it is read).
    """

    OPTIONS: ClassVar[type[SingleOptions]] = SingleOptions

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options: SingleOptions = read_options(self.OPTIONS, opt)
        self.reader: Reader = DiskReader(self.options.color)
        try:
            self.paths = self._find()
        except DataError as error:
            raise DataError(f"data set {self.options.name!r}: {error}") from error

    def _find(self) -> list[str]:
        folder = self.options.dataroot_lq
        if self.options.io_backend.type == "lmdb":
            _say_unread(self.options.meta_info_file, self.options.name)
            self.reader = reader = LmdbReader(folder, self.options.color)
            return sorted(reader.keys())
        if self.options.meta_info_file is None:
            return [os.path.join(folder, name) for name in list_images(folder)]
        paths = [os.path.join(folder, name) for name in names_from_meta_info(self.options.meta_info_file)]
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise DataError(f"{self.options.meta_info_file} lists {missing[0]}, which does not exist")
        return paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        """Return ``lq`` (C, h, w), float32 in [0, 1], ``lq_path``, and ``bits``, the depth of the file."""
        path = self.paths[index]
        image = self.reader.read(path)
        return {"lq": finish(image, self.options), "lq_path": path, "bits": 8 * image.itemsize}
