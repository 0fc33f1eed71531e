"""Shared by the steps that make PNG images: find the inputs, read them, and recognise outputs that exist."""

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
_LONGEST = 80  # bytes of this chunk


def inputs(folder: Path) -> list[Path]:
    """Return the images of a folder.

    Raises:
        DataError: the folder or images are missing, or two names differ only in the suffix, so that their outputs would
            overwrite each other.
    """
    paths, seen = list_images(folder), dict[str, Path]()
    for path in paths:
        if path.stem in seen:
            raise DataError(f"{seen[path.stem]} and {path} have the same name: remove or rename one of them")
        seen[path.stem] = path
    return paths


def named(folder: Path) -> Path:
    """Return the folder under a proper name, from which names beside it can be derived; ``.`` and ``..`` have none."""
    return folder.resolve() if folder.name in ("", "..") else folder


def read_colours(path: Path) -> np.ndarray:
    """Read an image as stored, but without an alpha channel that is opaque: (H, W), (H, W, 3) or (H, W, 4)."""
    image = read_image(path)
    if image.ndim == 3 and image.shape[2] == 4 and (image[..., 3] == np.iinfo(image.dtype).max).all():
        return np.ascontiguousarray(image[..., :3])
    return image


def write_made(path: Path, image: np.ndarray, recipe: str = "") -> None:
    """Write a PNG file atomically; if ``recipe`` is given, a text chunk stores it to say how the file was made."""
    chunks = [(_TEXT, _KEYWORD + recipe.encode("latin-1"))] if recipe else []
    write_atomically(path, with_png_chunks(encode_png(image), chunks), flush=False)


def recipe_of(path: Path) -> str | None:
    """Return the recipe that :func:`write_made` stored in a file; None if there is no recipe or no file."""
    try:
        with path.open("rb") as file:
            file.seek(PNG_HEADER)
            return _recipe_chunk(file)
    except OSError:
        return None


def _recipe_chunk(file: BinaryIO) -> str | None:
    """Return the recipe in the PNG chunk at the current position; None if it is another chunk."""
    length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
    content = file.read(min(length, _LONGEST))
    stored = kind == _TEXT and content.startswith(_KEYWORD)
    return content.removeprefix(_KEYWORD).decode("latin-1") if stored else None


def is_made(path: Path, size: tuple[int, int], source: Path, recipe: str = "") -> bool:
    """Return whether ``path`` is a complete PNG file of this (height, width), not older than its source, by ``recipe``.

    The size alone is not enough: the file may show another part of the image or have other borders.
    """
    try:
        with path.open("rb") as file:
            head = file.read(PNG_HEADER)
            stored = _recipe_chunk(file) or ""
            file.seek(-len(_PNG_END), 2)
            whole = head.startswith(_PNG_START) and file.read() == _PNG_END
        found = int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
        return whole and stored == recipe and found == size and path.stat().st_mtime >= source.stat().st_mtime
    except OSError:  # missing, or too short to seek
        return False
