"""``safmn prepare subimages``: cut HR images and their LR images into overlapping squares for training.

Reading a small file is faster than reading a 2K image to use one patch. The published recipe: HR 480x480 with a step of
240, LR 1/scale of both. The last row and column move inward to end at the border.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from safmn.errors import DataError, exit_status
from safmn.imaging import image_size
from safmn.prepare import arguments as arguments_of
from safmn.prepare.arguments import SIDE, STEP, THRESH
from safmn.prepare.lr import lr_path
from safmn.prepare.outputs import inputs, is_made, named, read_colours, recipe_of, write_made
from safmn.prepare.parallel import Outcome, default_jobs, for_each

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SubimageCut:
    """The grid in HR pixels: squares of ``side`` every ``step``, and one more if over ``thresh`` pixels remain."""

    side: int = SIDE
    step: int = STEP
    thresh: int = THRESH

    def starts(self, length: int) -> list[int]:
        """Return the start positions of the squares along an axis of this length (at least ``side``)."""
        starts = list(range(0, length - self.side + 1, self.step))
        if length - (starts[-1] + self.side) > self.thresh:
            starts.append(length - self.side)
        return starts

    def check(self, scales: Sequence[int]) -> None:
        """Check that the numbers are positive and multiples of every scale.

        Raises:
            DataError: they are not; the message names the number and the scale.
        """
        if self.side < 1 or self.step < 1 or self.thresh < 0:
            raise DataError(
                f"--crop {self.side} and --step {self.step} must be positive, --thresh {self.thresh} not negative"
            )
        for scale in scales:
            if scale < 1 or self.side % scale or self.step % scale:
                raise DataError(f"--crop {self.side} and --step {self.step} must be multiples of the scale {scale}")


def cut_subimages(
    hr: Path,
    output: Path,
    *,
    lr: Path | None = None,
    lr_output: Path | None = None,
    scales: Sequence[int] = (),
    cut: SubimageCut | None = None,
    jobs: int | None = None,
) -> Outcome:
    """Cut every image of ``hr`` into ``output/<name>_s001.png`` ..., row by row.

    With ``scales``, the LR images ``lr/X<s>/<name>x<s>.png`` are cut into ``lr_output/X<s>/<name>_s001.png`` ..., with
    the names of their HR counterparts, as published. HR images are first cropped to the area that all their LR images
    show. Images smaller than a square are skipped with a warning. Existing sub-images are kept if they are complete,
    not older than their source, and cut at the same place, which each file records.

    Raises:
        DataError: a folder or an LR image is missing, or a number does not fit. Some errors are only failures in the
            outcome: an unreadable image, a pair whose sizes do not fit, or more existing squares than are cut now.
    """
    cut = cut or SubimageCut()
    cut.check(scales)
    sources = inputs(hr)
    counterparts: list[Mapping[int, Path]] = [{} for _ in sources]
    if scales:
        if lr is None or lr_output is None:
            raise DataError("scales need folders of LR images")
        counterparts = [{scale: lr_path(lr, source.stem, scale) for scale in scales} for source in sources]
        missing = [str(path) for paths in counterparts for path in paths.values() if not path.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} LR images are missing; the first is {missing[0]}. Make them with: "
                f"safmn prepare lr --hr {hr} -o {lr} --scales {' '.join(map(str, scales))}"
            )
    work = partial(_cut_pair, output=output, lr_output=lr_output or output, cut=cut)
    pairs = list(zip(sources, counterparts, strict=True))
    return for_each(work, pairs, jobs=jobs or default_jobs(), description=f"sub-images of {hr}")


def _cut_pair(
    pair: tuple[Path, Mapping[int, Path]], *, output: Path, lr_output: Path, cut: SubimageCut
) -> tuple[int, int]:
    source, counterparts = pair
    height, width = _common_size(source, counterparts)
    if min(height, width) < cut.side:
        logger.warning("%s: %dx%d (width x height) is smaller than %d: skipped", source, width, height, cut.side)
        corners = []
    else:
        corners = [(top, left) for top in cut.starts(height) for left in cut.starts(width)]
    _check_other_scales(source.stem, lr_output, counterparts, corners)
    made = _cut_one(source, output, corners, cut.side, scale=1)
    for scale, path in counterparts.items():
        made += _cut_one(path, lr_output / f"X{scale}", corners, cut.side, scale=scale, name=source.stem)
    return made, len(corners) * (1 + len(counterparts)) - made


def _check_other_scales(name: str, lr_output: Path, scales: Iterable[int], corners: Sequence[tuple[int, int]]) -> None:
    """Check that the HR grid matches existing LR squares of scales that are not cut now, so that pairs still fit.

    The common multiple of the scales that are cut together determines where the last row and column start.

    Raises:
        DataError: a square of another scale shows another place; the message names its folder.
    """
    for folder in lr_output.glob("X*"):
        first = folder / f"{name}_s001.png"
        if folder.name in {f"X{scale}" for scale in scales} or not first.exists():
            continue
        last = folder / f"{name}_s{len(corners):03d}.png"
        surplus = folder / f"{name}_s{len(corners) + 1:03d}.png"
        if not corners or surplus.exists() or recipe_of(last) != _place(corners[-1]):
            raise DataError(
                f"{folder} was cut on another grid of {name} than this one: cut all scales together (--scales), or "
                f"remove {folder}"
            )


def _place(corner: tuple[int, int]) -> str:
    return f"at {corner[0]},{corner[1]} of HR"


def _cut_one(
    source: Path, output: Path, corners: Sequence[tuple[int, int]], side: int, *, scale: int, name: str | None = None
) -> int:
    """Cut one image at corners given in HR pixels; return how many sub-images were missing and are now made."""
    small, name = side // scale, name or source.stem
    paths = {output / f"{name}_s{number:03d}.png": at for number, at in enumerate(corners, start=1)}
    surplus = output / f"{name}_s{len(corners) + 1:03d}.png"
    if surplus.exists():
        raise DataError(
            f"{surplus} exists, but {source} gives only {len(corners)} squares: {output} was cut differently. Remove "
            "it, or cut into another folder"
        )
    recipes = {path: _place(at) for path, at in paths.items()}
    missing = {path: at for path, at in paths.items() if not is_made(path, (small, small), source, recipes[path])}
    if missing:
        image = read_colours(source)
        for path, (top, left) in missing.items():
            y, x = top // scale, left // scale
            write_made(path, np.ascontiguousarray(image[y : y + small, x : x + small]), recipes[path])
    return len(missing)


def _common_size(source: Path, counterparts: Mapping[int, Path]) -> tuple[int, int]:
    """Return the (height, width) of HR that every LR image shows, a multiple of all scales.

    Raises:
        DataError: the size of an LR image is not that of its HR image divided by the scale.
    """
    height, width = image_size(source)
    for scale, path in counterparts.items():
        found, wanted = image_size(path), (height // scale, width // scale)
        if found != wanted:
            raise DataError(
                f"{path} is {found[1]}x{found[0]} (width x height), but {source} is {width}x{height}, which makes "
                f"{wanted[1]}x{wanted[0]} at x{scale}"
            )
    multiple = math.lcm(*counterparts) if counterparts else 1
    return height - height % multiple, width - width % multiple


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_sub")


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, 1 if images failed, or 2 for a user's mistake."""
    arguments = arguments_of.subimages().parse_args(argv)
    hr = named(arguments.hr)
    lr = named(arguments.lr or hr.parent / "LR_bicubic")
    output = arguments.output or _beside(hr)
    outcome = cut_subimages(
        hr,
        output,
        lr=lr,
        lr_output=arguments.lr_output or _beside(lr),
        scales=sorted(set(arguments.scales)),
        cut=SubimageCut(arguments.crop, arguments.step, arguments.thresh),
        jobs=arguments.jobs,
    )
    return outcome.report(f"sub-images in {output}")
