"""What the steps that make PNG images share: which inputs, what is there already, what to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from safmn.errors import DataError
from safmn.imaging import list_images, read_image

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB\x60\x82"


def inputs(folder: Path) -> list[Path]:
    """The images of a folder, of which no two differ in the suffix only.

    Raises:
        DataError: no folder, no image, or two images of one name (their outputs would overwrite each other).
    """
    paths, seen = list_images(folder), dict[str, Path]()
    for path in paths:
        if path.stem in seen:
            raise DataError(f"{seen[path.stem]} and {path} have the same name: remove or rename one of them")
        seen[path.stem] = path
    return paths


def read_colours(path: Path) -> np.ndarray:
    """An image as stored, (H, W) or (H, W, 3): no alpha."""
    image = read_image(path)
    return image[..., :3] if image.ndim == 3 else image


def is_made(path: Path, size: tuple[int, int], source: Path) -> bool:
    """Whether ``path`` is a whole PNG file of this (height, width), no older than its source."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
            file.seek(-len(_PNG_END), 2)
            whole = head.startswith(_PNG_START) and file.read() == _PNG_END
        found = int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
        return whole and found == size and path.stat().st_mtime >= source.stat().st_mtime
    except OSError:  # missing, or too short to seek
        return False
