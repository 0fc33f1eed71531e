"""EXIF's orientation: how the pixels of a file have to be turned to be upright."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image

from safmn.value_types import Array

TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
"""Value of the tag -> (H, W, ...) as stored to (H, W, ...) upright, a view; 1 and what is unknown stay as they are."""
_LYING = (5, 6, 7, 8)
_WITH_EXIF = ("JPEG", "MPO", "PNG", "WEBP")


def orientation_in(data: bytes | memoryview) -> int:
    """The orientation that an image file's bytes state; 1 where they state none. Damaged EXIF data states none."""
    data = bytes(data)
    if b"Exif\0\0" not in data and b"eXIf" not in data and b"EXIF" not in data:  # JPEG, PNG, WebP
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return orientation_of(image)
    except Exception:  # the parser trusts offsets and types that a damaged block states
        return 1


def orientation_of(image: Image.Image) -> int:
    """The same of a file that Pillow has opened; its pixels are not decoded.

    1 for formats other than JPEG, PNG and WebP: decoders turn TIFF and AVIF themselves.
    """
    if image.format not in _WITH_EXIF or "exif" not in image.info:  # asked for EXIF data, a PNG file is decoded
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above
        return 1


def is_lying(orientation: int) -> bool:
    """Whether height and width are exchanged in the file."""
    return orientation in _LYING


def upright(pixels: Array, orientation: int) -> Array:
    """The pixels turned as they are to be shown."""
    turn = TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))
