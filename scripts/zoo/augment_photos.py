"""Augment photographs for training: copies at other scales, with the LR pixels at other positions.

``augment_photos.py datasets/photos/more -o datasets/photos/augmented`` links each photograph, and writes a lossless
copy of it at each of ``--scales``, shrunk with ``imresize``. Before, up to three rows and columns are cut off each
copy, so that its LR image samples the photograph at another phase. Their number depends only on the file's name and the
scale, so a second run writes the same files. Training itself does flips and rotations.
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

PHASES = 4  # 0 to 3 rows and columns are cut off, which are the phases of x4


def phase(name: str, scale: float) -> tuple[int, int]:
    """Return how many rows and columns to cut off the photograph with this file name for its copy at this scale."""
    seed = [*name.encode(), round(1000 * scale)]
    down, across = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).integers(PHASES, size=2)
    return int(down), int(across)


def shrunk(image: np.ndarray, name: str, scale: float) -> np.ndarray:
    """Return the copy of a uint8 (H, W, 3) image at ``scale`` (at most 1)."""
    down, across = phase(name, scale)
    cut = image[down:, across:]
    return cut if scale == 1 else imresize(cut, scale)


def copy_name(path: Path, scale: float) -> str:
    """Return the file name of the photograph's copy at this scale."""
    return f"{path.stem}_{round(100 * scale)}.png"


def link_into(folder: Path, path: Path) -> None:
    """Create a symbolic link with the same name to the file in ``folder``, unless there is one."""
    link = folder / path.name
    if not link.is_symlink():
        link.symlink_to(path.resolve())


def write_copies(folder: Path, scales: Sequence[float], path: Path) -> tuple[int, int]:
    """Write the copies of one photograph to ``folder``; return how many were written and how many existed."""
    missing = {scale: copy for scale in scales if not (copy := folder / copy_name(path, scale)).exists()}
    if missing:
        image = read_rgb(path)
        for scale, copy in missing.items():
            write_image(copy, shrunk(image, path.name, scale))
    return len(missing), len(scales) - len(missing)


@exit_status
def main() -> int:
    """Link the photographs and write the copies; return the exit status."""
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
