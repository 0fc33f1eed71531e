"""Small data sets on disk, as lmdb and as patch stores, for the tests of safmn.data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from safmn.data.store_format import Source
from safmn.imaging import write_image
from safmn.prepare.store import build_store

SIZES = ((40, 52), (48, 36), (36, 36), (64, 40), (45, 71))  # of LQ images: height, width


def coordinates(height: int, width: int, number: int) -> np.ndarray:
    """Return an image whose pixels hold their own position: uint8 (height, width, 3) with row, column, number."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, number)], axis=-1).astype(np.uint8)


def make_folders(root: Path, scale: int = 2, sizes: Sequence[tuple[int, int]] = SIZES) -> tuple[Path, Path]:
    """Make HR and LR folders with names that sort differently with and without their ending.

    Every GT pixel holds the coordinates of its LQ pixel.
    """
    for number, (height, width) in enumerate(sizes):
        lq = coordinates(height, width, number)
        name = ("b", "b-1", "a", "a_long.name", "c")[number % 5] + (str(number) if number > 4 else "")
        write_image(root / "LR" / f"{name}x{scale}.png", lq)
        write_image(root / "HR" / f"{name}.png", lq.repeat(scale, axis=0).repeat(scale, axis=1))
    return root / "HR", root / "LR"


def make_lmdb(folder: Path, target: Path, ending: str = "") -> Path:
    """Write the images of a folder to an lmdb in BasicSR's format; the keys are the names without ``ending``."""
    target.mkdir()
    lines = []
    with lmdb.open(str(target), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for path in sorted(folder.iterdir()):
            key = path.stem.removesuffix(ending)
            transaction.put(key.encode(), path.read_bytes())
            lines.append(f"{key}.png (1,1,3) 1\n")
    (target / "meta_info.txt").write_text("".join(lines))
    return target


def make_store(hr: Path, lr: Path | None, target: Path, scale: int = 2) -> Path:
    """Make a patch store of two folders."""
    build_store(target, Source(scale, str(hr), str(lr) if lr else None, "{}" + f"x{scale}", None), jobs=2)
    return target


def paired_section(hr: Path, lr: Path, **more: Any) -> dict[str, Any]:
    """Return a data set section for two folders at scale 2, or, with ``type`` and ``dataroot``, for a store."""
    return {
        "name": "set",
        "type": "PairedImageDataset",
        "dataroot_gt": str(hr),
        "dataroot_lq": str(lr),
        "filename_tmpl": "{}x2",
        "io_backend": {"type": "disk"},
        "gt_size": 32,
        "use_hflip": True,
        "use_rot": True,
        "batch_size_per_gpu": 3,
        **more,
    }
