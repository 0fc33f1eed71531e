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
_WITH_EXIF = ("JPEG", "MPO", "PNG", "WEBP", "AVIF")
_MARKS = (b"Exif\0\0", b"eXIf", b"EXIF", b"irot", b"imir")  # of JPEG, PNG, WebP; of AVIF the last two
_PNG_MARKS = (b"eXIf",)


def orientation_in(data: bytes | memoryview) -> int:
    """The orientation that an image file's bytes state; 1 where they state none. Damaged EXIF data states none.

    Raises:
        Image.DecompressionBombError: more pixels than Pillow opens.
    """
    data = bytes(data)
    if not any(mark in data for mark in (_PNG_MARKS if data.startswith(b"\x89PNG") else _MARKS)):
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return orientation_of(image)
    except Image.DecompressionBombError:
        raise
    except Exception:  # the parser trusts offsets and types that a damaged block states
        return 1


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of a file that Pillow has opened, without decoding its pixels.

    1 for formats other than JPEG, PNG, WebP and AVIF (whose rotation Pillow gives as EXIF data): TIFF is turned when it
    is decoded. The orientation in XMP does not count, as in browsers.
    """
    if image.format not in _WITH_EXIF or "exif" not in image.info:  # getexif() would decode a PNG file
        return 1
    try:
        exif = Image.Exif()
        exif.load(image.info["exif"])  # Image.getexif would take the orientation of XMP
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above
        return 1


def is_lying(orientation: int) -> bool:
    """Return whether the file stores the image with height and width swapped."""
    return orientation in _LYING


def upright(pixels: Array, orientation: int) -> Array:
    """Return the pixels (H, W, ...) turned upright."""
    turn = TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))
