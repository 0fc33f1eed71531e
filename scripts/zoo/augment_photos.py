"""More training images from few: every photograph at other scales, and cut so that LR pixels fall elsewhere.

``augment_photos.py datasets/photos/more -o datasets/photos/augmented`` writes, beside links to the photographs
themselves, a copy of each at every one of ``--scales`` (as ``imresize`` shrinks), losslessly. From each copy up to
three rows and columns are cut off first, so that its LR image samples the photograph at another phase. What is cut is a
function of the file's name and the scale: a second run writes the same files. Flips and turns are made in training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.errors import exit_status
from safmn.imaging import imresize, list_images, read_rgb, write_image
from safmn.prepare.parallel import default_jobs, for_each

PHASES = 4  # rows and columns that may be cut off: 0 to 3, the phases of x4


def phase(name: str, scale: float) -> tuple[int, int]:
    """How many rows and columns to cut off the photograph of this name for its copy at this scale."""
    seed = [*name.encode(), round(1000 * scale)]
    down, across = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).integers(PHASES, size=2)
    return int(down), int(across)


def shrunk(image: np.ndarray, name: str, scale: float) -> np.ndarray:
    """The copy of an (H, W, 3) uint8 image at ``scale`` (at most 1)."""
    down, across = phase(name, scale)
    cut = image[down:, across:]
    return cut if scale == 1 else imresize(cut, scale)


def copy_name(path: Path, scale: float) -> str:
    """File name of the photograph's copy at this scale."""
    return f"{path.stem}_{round(100 * scale)}.png"


def link_into(folder: Path, path: Path) -> None:
    """A symbolic link to the file in ``folder``, under its own name, if there is none."""
    link = folder / path.name
    if not link.is_symlink():
        link.symlink_to(path.resolve())


def write_copies(folder: Path, scales: Sequence[float], path: Path) -> tuple[int, int]:
    """Write the copies of one photograph to ``folder``; how many were written, and how many were there."""
    missing = {scale: copy for scale in scales if not (copy := folder / copy_name(path, scale)).exists()}
    if missing:
        image = read_rgb(path)
        for scale, copy in missing.items():
            write_image(copy, shrunk(image, path.name, scale))
    return len(missing), len(scales) - len(missing)


@exit_status
def main() -> int:
    """Link, shrink, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.8, 0.64, 0.5])
    arguments = parser.parse_args()
    if not all(0 < scale <= 1 for scale in arguments.scales):
        parser.error("--scales must be above 0 and at most 1")
    files = list_images(arguments.photographs)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for path in files:
        link_into(arguments.output, path)
    copies = partial(write_copies, arguments.output, arguments.scales)
    outcome = for_each(copies, files, jobs=default_jobs(), description="photographs")
    return outcome.report(f"{arguments.output}: copies of {len(files)} photographs")


if __name__ == "__main__":
    sys.exit(main())
