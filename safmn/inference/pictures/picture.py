"""An image and what belongs to it, and the kinds of files it is read from and written to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import ExifTags

from safmn.imaging.orientation import TURNS
from safmn.inference.pictures.exif import load_exif
from safmn.value_types import Array

WRITABLE = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
"""Suffixes that can be written, with Pillow's name of the format."""
READABLE = (*WRITABLE, ".jfif", ".jpe", ".jp2", ".tga", ".dib", ".pnm", ".pbm", ".mpo")
"""Suffixes of files that are taken for images."""


@dataclass(frozen=True)
class Picture:
    """An image and what belongs to it.

    Attributes:
        pixels: uint8 or uint16; (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB, (H, W, 4) RGB and alpha; before
            the orientation that ``exif`` states.
        exif: EXIF data, with the orientation.
        icc: colour profile, for the colour space of ``pixels``.
    """

    pixels: Array
    exif: bytes | None = None
    icc: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        height, width = self.pixels.shape[:2]
        return width, height

    def upright(self) -> Picture:
        """The same with the orientation applied to the pixels and taken out of the EXIF data."""
        exif = load_exif(self.exif)
        turn = TURNS.get(exif.pop(ExifTags.Base.Orientation, 1))
        if turn is None:
            return self
        return replace(self, pixels=np.ascontiguousarray(turn(self.pixels)), exif=exif.tobytes())


def to_rgb8(pixels: Array) -> Array:
    """Any pixels of a :class:`Picture` as uint8 (H, W, 3): 16 bits rounded, alpha onto white, grey repeated."""
    pixels = eight_bits(pixels) if pixels.dtype == np.uint16 else pixels
    pixels = onto_white(pixels) if pixels.ndim == 3 and pixels.shape[2] in (2, 4) else pixels
    return np.ascontiguousarray(np.repeat(pixels[..., None], 3, axis=2)) if pixels.ndim == 2 else pixels


def eight_bits(pixels: Array) -> Array:
    """uint16 as uint8, rounded."""
    return np.asarray((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def onto_white(pixels: Array) -> Array:
    """(H, W, 2 or 4) with straight alpha onto white: (H, W) or (H, W, 3)."""
    alpha = pixels[..., -1:].astype(np.float32) / np.iinfo(pixels.dtype).max
    white = np.iinfo(pixels.dtype).max
    flat = np.rint(pixels[..., :-1] * alpha + white * (1 - alpha)).astype(pixels.dtype)
    return flat[..., 0] if flat.shape[2] == 1 else flat
