"""The photographs inside the installed scikit-image, as training data for the demo without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from safmn.data.options import CropOptions
from safmn.data.paired import PairedImageDataset
from safmn.data.sources import Pair
from safmn.errors import DataError, did_you_mean
from safmn.imaging import imresize, mod_crop, read_rgb
from safmn.registry import DATASET_REGISTRY
from safmn.value_types import PositiveFloat


class BundledPhotosOptions(CropOptions, frozen=True, kw_only=True):
    """Keys of :class:`BundledPhotos`.

    Attributes:
        names: Files in scikit-image's data folder, such as ``coffee.png``.
        color: ``y``: the Y channel only (BT.601, 16/255 to 235/255); null or ``rgb``: all three channels.
        mean: One number per channel, subtracted from the values in [0, 1].
        std: One number per channel; values are divided by it after the subtraction.
    """

    names: list[str]
    color: Literal["y", "rgb"] | None = None
    mean: list[float] | None = None
    std: list[PositiveFloat] | None = None


def photo_folder() -> Path:
    """Return the data folder of the installed scikit-image.

    Raises:
        DataError: scikit-image is not installed.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise DataError("data set of type BundledPhotos: scikit-image is not installed; pip install scikit-image")
    return Path(found.origin).parent / "data"


@DATASET_REGISTRY.register()
class BundledPhotos(PairedImageDataset):
    """Pairs of a photograph and its MATLAB-exact bicubic reduction, both kept in memory.

    Args:
        opt: ``names`` (files of scikit-image's data folder), ``scale``, ``phase`` and the crop keys of
            :class:`PairedImageDataset`.

    Raises:
        OptionError: a key is missing or wrong.
        DataError: scikit-image is not installed or does not contain a photograph.
    """

    OPTIONS: ClassVar[Any] = BundledPhotosOptions

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        self._pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def _find(self) -> list[Pair]:
        folder = photo_folder()
        there = [path.name for path in folder.iterdir()]
        names: list[str] = self.options.names  # type: ignore[attr-defined]
        for name in names:
            if name not in there:
                raise DataError(f"scikit-image has no photograph {name!r} in {folder}.{did_you_mean(name, there)}")
        return [Pair(str(folder / name), name) for name in names]

    def _make_pair(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        scale = self.options.scale
        gt = mod_crop(read_rgb(path), scale)
        return gt, imresize(gt, 1 / scale)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray, Pair]:
        pair = self.pairs[index]
        if pair.gt not in self._pairs:
            self._pairs[pair.gt] = self._make_pair(pair.gt)
        return *self._pairs[pair.gt], pair
