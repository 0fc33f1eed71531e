"""The images of a report: LQ, bicubic, GT, and what networks made of them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safmn.data import build_dataset
from safmn.errors import DataError, UserError, first_line
from safmn.evaluation.bicubic import bicubic
from safmn.evaluation.crops import most_different_box
from safmn.imaging import decode_rgb, read_rgb, to_tensor, to_uint8
from safmn.imaging.file_names import image_name
from safmn.inference.side_by_side import busiest_box
from safmn.options.datasets import PATHS
from safmn.report.runs import Run
from safmn.value_types import Array

logger = logging.getLogger(__name__)

_SAVED = re.compile(r"(.+)_(\d+)")
FIRST_IMAGE = "(first image)"
"""The image in TensorBoard's files, which have the first one of each set, without its name."""


@dataclass
class Scene:
    """One image of a set.

    Attributes:
        set_name: the set.
        image: name of the LQ image without ending.
        lq, gt: uint8 (H, W, 3) RGB; None if unknown.
    """

    set_name: str
    image: str
    lq: Array | None = None
    gt: Array | None = None

    def bicubic(self, scale: int) -> Array | None:
        """Return the LQ image enlarged with MATLAB's bicubic; None without it."""
        if self.lq is None:
            return None
        return to_uint8(bicubic(scale)(to_tensor(self.lq)[None])[0])


@dataclass
class SavedImages:
    """The validation images that a run saved: set -> image -> iteration -> file, or the content of a file."""

    of_set: dict[str, dict[str, dict[int, Path | bytes]]] = field(default_factory=dict)

    def add(self, set_name: str, image: str, iteration: int, source: Path | bytes) -> None:
        """Add one image."""
        self.of_set.setdefault(set_name, {}).setdefault(image, {})[iteration] = source

    def name_first(self, set_name: str, name: str) -> None:
        """Give the image from TensorBoard's files its name."""
        images = self.of_set.get(set_name, {})
        if FIRST_IMAGE in images:
            images[name] = images.pop(FIRST_IMAGE)


def saved_images(run: Run) -> SavedImages:
    """Find the images in ``visualization`` (ours: a folder for each set; BasicSR's: one for each image).

    Without any, take the first image of each set from TensorBoard's files.
    """
    found = SavedImages()
    val = run.options.get("val") or {}
    suffix = val.get("suffix") if isinstance(val, Mapping) else None
    for folder in sorted(path for path in (run.root / "visualization").glob("*") if path.is_dir()):
        for file in sorted(folder.glob("*.png")):
            parts = _SAVED.fullmatch(file.stem)
            if suffix and file.stem.endswith(f"_{suffix}"):  # replaced at each validation
                image, iteration = file.stem.removesuffix(f"_{suffix}"), run.iteration
            elif parts:
                image, iteration = parts[1], int(parts[2])
            else:
                continue
            set_name = _set_of(run) if folder.name == image else folder.name
            found.add(set_name, image, iteration, file)
    if not found.of_set:
        for tag, images in run.events.images.items():
            for iteration, content in images.items():
                found.add(tag.removeprefix("images/"), FIRST_IMAGE, iteration, content)
    return found


def _set_of(run: Run) -> str:
    """Return the name of the first validation set: BasicSR's folders of images do not name it."""
    return next(iter(validation_sections(run.options)), next(iter(run.scores), "validation"))


def validation_sections(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the sections of the validation sets of an option file, by name."""
    sections = options.get("datasets")
    return {
        str(section.get("name", key)): dict(section)
        for key, section in (sections.items() if isinstance(sections, Mapping) else ())
        if str(key).split("_")[0] == "val" and isinstance(section, Mapping)
    }


class SourceImages:
    """Reads the LQ and GT images of data sets by name, from where the run or test read them.

    Args:
        home: the folder from which the run was started; relative paths that are not here are looked for there.
    """

    def __init__(self, home: Path, scale: int, seed: int = 0) -> None:
        self.home = home
        self.scale = scale
        self.seed = seed
        self.notes: list[str] = []
        self._sets: dict[str, tuple[Any, list[str]] | None] = {}

    def scene(self, set_name: str, image: str, section: Mapping[str, Any]) -> Scene:
        """Return an image with its LQ and GT, as far as they can be read; what cannot is said in ``notes``."""
        known = self._known(set_name, section)
        if known is None:
            return Scene(set_name, image)
        dataset, names = known
        wanted = image_name(image)
        if wanted not in names:
            return Scene(set_name, image)
        try:
            item = dataset[names.index(wanted)]
        except (UserError, OSError) as error:
            self.notes.append(f"{set_name}: {first_line(error)}")
            return Scene(set_name, image)
        gt = item.get("gt")
        return Scene(set_name, image, to_uint8(item["lq"]), None if gt is None else to_uint8(gt))

    def first(self, set_name: str, section: Mapping[str, Any]) -> str:
        """Return the name of a set's first image; ``FIRST_IMAGE`` if the set cannot be read."""
        known = self._known(set_name, section)
        return known[1][0] if known and known[1] else FIRST_IMAGE

    def _known(self, set_name: str, section: Mapping[str, Any]) -> tuple[Any, list[str]] | None:
        if set_name not in self._sets:
            self._sets[set_name] = self._build(set_name, section)
        return self._sets[set_name]

    def _build(self, set_name: str, section: Mapping[str, Any]) -> tuple[Any, list[str]] | None:
        try:
            if not section:
                raise DataError("its option file is unknown")
            dataset = build_dataset(self._at_home(section), phase="val", scale=self.scale, seed=self.seed)
            return dataset, [image_name(path) for path in _names(dataset)]
        except (UserError, OSError) as error:
            self.notes.append(f"{set_name}: without LQ, bicubic and GT images, because {first_line(error)}")
            return None

    def _at_home(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """Return a section whose relative paths, if they do not exist here, start at the run's home."""
        return {
            key: str(self.home / value)
            if key in PATHS and isinstance(value, str) and not os.path.exists(value) and (self.home / value).exists()
            else value
            for key, value in section.items()
        }


def sources_of(run: Run) -> SourceImages:
    """Return what reads the LQ and GT images of a run."""
    scale, seed = run.options.get("scale"), run.options.get("manual_seed")
    return SourceImages(home_of(run.root), scale if isinstance(scale, int) and scale > 0 else 1, int(seed or 0))


def named_images(run: Run) -> SavedImages:
    """Return the saved images of a run like :func:`saved_images`, with the name of TensorBoard's image if possible."""
    found, sources, sections = saved_images(run), sources_of(run), validation_sections(run.options)
    for set_name in list(found.of_set):
        if FIRST_IMAGE in found.of_set[set_name]:
            found.name_first(set_name, sources.first(set_name, sections.get(set_name, {})))
    return found


def _names(dataset: Any) -> list[str]:
    """Return the paths of the LQ images in the order of the data set."""
    pairs = getattr(dataset, "pairs", None)
    if pairs is not None:
        return [str(pair.lq) for pair in pairs]
    paths = getattr(dataset, "paths", None)
    return [str(path) for path in paths] if paths else [str(dataset[i]["lq_path"]) for i in range(len(dataset))]


def home_of(folder: Path) -> Path:
    """Return the folder in which ``experiments/<name>`` or ``results/<name>`` lies."""
    return folder.resolve().parent.parent


def open_saved(source: Path | bytes) -> Array | None:
    """Return a saved image, uint8 (H, W, 3); None if it is incomplete, because the run is writing it."""
    try:
        return read_rgb(source) if isinstance(source, Path) else decode_rgb(source, "an image of TensorBoard's file")
    except DataError as error:
        logger.warning("left out: %s", error)
        return None


def detail_of(images: Sequence[Array], gt: Array | None = None) -> tuple[int, int, int, int]:
    """Return (x, y, width, height) of the part in which images, or one image and the GT, differ most.

    Of a single image without GT, it is the part with the most structure.
    """
    alone = len(images) < 2 and gt is None
    left, top, right, bottom = busiest_box(images[0]) if alone else most_different_box(images, gt)
    return left, top, right - left, bottom - top
