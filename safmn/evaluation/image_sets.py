"""Sets of image pairs to score methods on, and the images that other code made for them."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safmn.data import build_dataset
from safmn.errors import DataError, OptionError
from safmn.evaluation.published import SETS
from safmn.imaging import image_size, imresize, list_images, read_rgb, to_tensor
from safmn.imaging.file_names import image_name
from safmn.prepare.hints import hint

logger = logging.getLogger("safmn")

BENCHMARK = Path("datasets/benchmark")
_SHARED_MULTIPLE = 12  # benchmarks crop the HR images to a multiple of 12, for all scales


@dataclass(frozen=True)
class ImageSet:
    """A set of GT images with their LR images.

    Attributes:
        name: the set's name.
        gt: folder of the GT images.
        lr: folder of the LR images; None: they are made with MATLAB's bicubic.
        scale: scale of super-resolution.
    """

    name: str
    gt: Path
    lr: Path | None
    scale: int

    def open(self) -> Any:
        """Return the data set: ``dataset[i]`` has lq, gt and their paths; ``dataset.files(i)`` are the files behind it.

        Raises:
            DataError: a folder is missing or the images do not fit.
        """
        if not self.gt.is_dir():
            raise DataError(f"{self.name}: there is no folder {self.gt}. {hint(self.gt)}")
        if self.lr is None:
            return _Reduced(self)
        if not self.lr.is_dir():
            raise DataError(f"{self.name}: there is no folder {self.lr}. {hint(self.lr)}")
        return _Pairs(self)


class _Pairs:
    """GT and LR images from two folders."""

    def __init__(self, images: ImageSet) -> None:
        section = paired_section(images.name, images.gt, images.lr, images.scale)  # type: ignore[arg-type]
        self._dataset = build_dataset(section, phase="test", scale=images.scale)
        self.names: list[str] = self._dataset.image_names()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def files(self, index: int) -> tuple[str, ...]:
        """Return the files that an item is made from."""
        pair = self._dataset.pairs[index]
        return pair.gt, pair.lq


class _Reduced:
    """GT images, and LR images made from them with MATLAB's bicubic."""

    def __init__(self, images: ImageSet) -> None:
        self._paths = list_images(images.gt)
        self._scale = images.scale
        self.names = [image_name(str(path)) for path in self._paths]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        gt = read_rgb(path)
        height, width = (side - side % self._scale for side in gt.shape[:2])
        if not height or not width:
            raise DataError(f"{path} is {gt.shape[1]}x{gt.shape[0]}, too small to be reduced by {self._scale}")
        gt = gt[:height, :width]
        lq = imresize(gt, 1 / self._scale)
        return {"lq": to_tensor(lq), "gt": to_tensor(gt), "lq_path": str(path), "gt_path": str(path)}

    def files(self, index: int) -> tuple[str, ...]:
        """Return the files that an item is made from."""
        return (str(self._paths[index]),)


class MadeImages:
    """Images that other code made, in the place of LR images, for scoring with a network that changes nothing.

    Args:
        folder: their folder; it may have a subfolder for each set.
        set_name: name of the set.
        gt: GT images by name; None: there are none.
        scale: scale of super-resolution: the GT images may be that much larger, less one pixel.

    Attributes:
        names: names of the GT images, or without them of the images.

    Raises:
        DataError: a GT image has no counterpart, or several.
    """

    def __init__(self, folder: Path, set_name: str, gt: Mapping[str, Path] | None, scale: int) -> None:
        places = (folder / set_name, folder / "visualization" / set_name)  # the second: of ``safmn test --save_img``
        self.folder = next((place for place in places if place.is_dir()), folder)
        made = list_images(self.folder)
        self._scale = scale
        self._gt = gt
        if gt is None:
            self._paths = {image_name(str(path)): path for path in made}
        else:
            self._paths = match(made, list(gt), self.folder)
        self.names = list(self._paths)
        self._report_smaller()

    def _report_smaller(self) -> None:
        """Log once how many images are smaller than their GT images, whose right and lower edges are not scored."""
        smaller = []
        for name, gt in (self._gt or {}).items():
            with contextlib.suppress(DataError):  # what cannot be read is said where its pixels are needed
                if image_size(self._paths[name]) != image_size(gt):
                    smaller.append(name)
        if smaller:
            logger.warning(
                "%s: %d of %d images are not as large as their GT images, the first is %s. The right and lower edges "
                "of those GT images are left out.",
                self.folder,
                len(smaller),
                len(self.names),
                smaller[0],
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        path = self._paths[name]
        image = read_rgb(path)
        item = {"lq": to_tensor(image), "lq_path": str(path)}
        if self._gt is None:
            return item
        gt = read_rgb(self._gt[name])
        excess = [large - small for large, small in zip(gt.shape[:2], image.shape[:2], strict=True)]
        if not all(0 <= pixels < max(self._scale, _SHARED_MULTIPLE) for pixels in excess):
            raise DataError(
                f"{path} is {image.shape[1]}x{image.shape[0]}, but its GT image {self._gt[name]} is "
                f"{gt.shape[1]}x{gt.shape[0]}"
            )
        gt = gt[: image.shape[0], : image.shape[1]]
        return {**item, "gt": to_tensor(gt), "gt_path": str(self._gt[name])}

    def files(self, index: int) -> tuple[str, ...]:
        """Return the files that an item is made from."""
        name = self.names[index]
        return (str(self._paths[name]),) if self._gt is None else (str(self._gt[name]), str(self._paths[name]))


def match(made: Sequence[Path], gt_names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return the image of each GT name: with the same name, or with an addition such as ``x4``, ``_SAFMN`` or ``-out``.

    Raises:
        DataError: a GT image has no image, or several.
    """
    found: dict[str, list[Path]] = {name: [] for name in gt_names}
    for path in made:
        stem = image_name(str(path))
        fitting = [
            name for name in gt_names if stem == name or re.match(rf"{re.escape(name)}(?:x\d|[^0-9A-Za-z])", stem)
        ]
        if fitting:
            found[max(fitting, key=len)].append(path)
    result = {}
    for name, paths in found.items():
        same = [path for path in paths if image_name(str(path)) == name]
        if len(same or paths) != 1:
            number = ", ".join(path.name for path in paths[:3]) or "none"
            raise DataError(f"{folder}: expected one image for the GT image {name!r}, found {number}")
        result[name] = (same or paths)[0]
    return result


def gt_files(images: ImageSet) -> dict[str, Path]:
    """Return the GT images of a set by name, in its order."""
    dataset = images.open()
    return {name: Path(dataset.files(index)[0]) for index, name in enumerate(dataset.names)}


def open_sets(texts: Sequence[str], scale: int) -> list[ImageSet]:
    """Return the sets that ``--data`` names.

    Args:
        texts: for each: a folder of sets (``<Set>/HR`` and ``<Set>/LR_bicubic/X<scale>``), such a set, a folder of HR
            images (LR images are then made with MATLAB's bicubic), ``NAME=HR_DIR,LR_DIR``, ``benchmark`` (for
            datasets/benchmark) or a set in it.
        scale: scale of super-resolution.

    Raises:
        OptionError: a text names no set, or two sets have the same name.
    """
    found = [image_set for text in texts for image_set in _sets(text, scale)]
    for number, image_set in enumerate(found):
        if image_set.name in {other.name for other in found[:number]}:
            raise OptionError(f"--data: two sets have the name {image_set.name!r}")
    return found


def _sets(text: str, scale: int) -> list[ImageSet]:
    name, equals, folders = text.partition("=")
    if equals and not Path(text).exists():
        gt, comma, lr = folders.partition(",")
        if not (name and gt):
            raise OptionError(f"--data {text}: write NAME=HR_DIR,LR_DIR or NAME=HR_DIR")
        return [ImageSet(name, Path(gt), Path(lr) if comma else None, scale)]
    place = _place(text)
    if (place / "HR").is_dir():
        return [_of_layout(place, scale)]
    inside = [folder.parent for folder in sorted(place.glob("*/HR"))]
    if inside:
        known = [place / name for name in SETS if place / name in inside]
        return [_of_layout(each, scale) for each in (*known, *(each for each in inside if each not in known))]
    with contextlib.suppress(DataError):
        list_images(place)
        return [ImageSet(place.resolve().name, place, None, scale)]
    raise OptionError(
        f"--data {text}: {place} has no sets (<Set>/HR) and no images. {hint(BENCHMARK / 'Set5')}"
        if place.is_dir()
        else f"--data {text}: there is no folder {place}. {hint(place / 'HR')}"
    )


def _place(text: str) -> Path:
    given = Path(text).expanduser()
    if given.is_dir() or len(given.parts) > 1:
        return given
    return (
        BENCHMARK
        if text == BENCHMARK.name
        else BENCHMARK / text
        if (BENCHMARK / text).is_dir() or text in SETS
        else given
    )


def _of_layout(place: Path, scale: int) -> ImageSet:
    return ImageSet(place.resolve().name, place / "HR", place / "LR_bicubic" / f"X{scale}", scale)


def paired_section(name: str, hr: Path, lr: Path, scale: int) -> dict[str, Any]:
    """Return a data set section. LR images have the names of their HR images, or these with ``x<scale>`` appended."""
    template = "{}"
    with contextlib.suppress(DataError):  # a missing or empty folder is reported when this set is tested
        stems = {image.stem for image in list_images(lr)}
        names = [image.stem for image in list_images(hr)]
        if sum(f"{name}x{scale}" in stems for name in names) > sum(name in stems for name in names):
            template = f"{{}}x{scale}"
    return {
        "name": name,
        "type": "PairedImageDataset",
        "dataroot_gt": str(hr),
        "dataroot_lq": str(lr),
        "filename_tmpl": template,
        "io_backend": {"type": "disk"},
    }
