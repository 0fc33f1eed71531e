"""The EXIF orientation: how to turn the pixels of a file upright."""

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
"""Tag value -> function from (H, W, ...) as stored to an upright view. Images with other values stay unchanged."""
_LYING = (5, 6, 7, 8)
_WITH_EXIF = ("JPEG", "MPO", "PNG", "WEBP")


def orientation_in(data: bytes | memoryview) -> int:
    """Return the orientation that an image file's bytes state; 1 if they state none or the EXIF data is damaged."""
    data = bytes(data)
    if b"Exif\0\0" not in data and b"eXIf" not in data and b"EXIF" not in data:  # JPEG, PNG, WebP
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return orientation_of(image)
    except Exception:  # Pillow's parser trusts the offsets and types in a damaged block
        return 1


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of a file that Pillow has opened, without decoding its pixels.

    It is 1 for formats other than JPEG, PNG and WebP, because decoders turn TIFF and AVIF themselves.
    """
    if image.format not in _WITH_EXIF or "exif" not in image.info:  # getexif() would decode a PNG file
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data, as above
        return 1


def is_lying(orientation: int) -> bool:
    """Return whether the file stores the image with height and width swapped."""
    return orientation in _LYING


def upright(pixels: Array, orientation: int) -> Array:
    """Return the pixels (H, W, ...) turned upright."""
    turn = TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))
