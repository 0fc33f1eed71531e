"""What the steps that make PNG images share: which inputs, what is there already, what to read."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from safmn.errors import DataError
from safmn.imaging import encode_png, list_images, read_image
from safmn.imaging.io import PNG_HEADER, with_png_chunks
from safmn.system.files import write_atomically

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB\x60\x82"
_TEXT, _KEYWORD = b"tEXt", b"safmn\0"  # the chunk that says how a file was made
_LONGEST = 80  # bytes of it


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


def named(folder: Path) -> Path:
    """A folder under a name that others can stand beside: ``.`` and ``..`` have none."""
    return folder.resolve() if folder.name in ("", "..") else folder


def read_colours(path: Path) -> np.ndarray:
    """An image as stored, (H, W) or (H, W, 3): no alpha."""
    image = read_image(path)
    return image[..., :3] if image.ndim == 3 else image


def write_made(path: Path, image: np.ndarray, recipe: str = "") -> None:
    """Write a PNG file, whole or not at all, that says how it was made (a text chunk), unless that is self-evident."""
    chunks = [(_TEXT, _KEYWORD + recipe.encode("latin-1"))] if recipe else []
    write_atomically(path, with_png_chunks(encode_png(image), chunks), flush=False)


def recipe_of(path: Path) -> str | None:
    """What :func:`write_made` says in a file; None where it says nothing, or there is none."""
    try:
        with path.open("rb") as file:
            file.seek(PNG_HEADER)
            return _told(file)
    except OSError:
        return None


def _told(file: BinaryIO) -> str | None:
    """The text of the chunk at this place of a PNG file."""
    length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
    content = file.read(min(length, _LONGEST))
    told = kind == _TEXT and content.startswith(_KEYWORD)
    return content.removeprefix(_KEYWORD).decode("latin-1") if told else None


def is_made(path: Path, size: tuple[int, int], source: Path, recipe: str = "") -> bool:
    """Whether ``path`` is a whole PNG file of this (height, width), no older than its source, made as ``recipe`` says.

    The same size may show something else: another place of the image, or other borders.
    """
    try:
        with path.open("rb") as file:
            head = file.read(PNG_HEADER)
            told = _told(file) or ""
            file.seek(-len(_PNG_END), 2)
            whole = head.startswith(_PNG_START) and file.read() == _PNG_END
        found = int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
        return whole and told == recipe and found == size and path.stat().st_mtime >= source.stat().st_mtime
    except OSError:  # missing, or too short to seek
        return False
