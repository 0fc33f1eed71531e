"""An image with its metadata, and the suffixes of the files that can be read and written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from safmn.imaging.orientation import TURNS, is_lying
from safmn.inference.pictures import exif as exif_data
from safmn.inference.pictures import xmp as xmp_packet
from safmn.inference.pictures.colours import Colours
from safmn.inference.pictures.resolution import Resolution
from safmn.value_types import Array


@dataclass(frozen=True)
class Extras:
    """Metadata of an image other than EXIF data and a colour profile.

    Attributes:
        colours: the colour space, if the file states it without a profile.
        resolution: pixels per inch.
        xmp: XMP packet.
        iptc: IPTC data (IPTC-IIM records).
        comment: the comment of JPEG and GIF, or PNG's text chunk with the keyword ``Comment``.
        texts: PNG's other text chunks, each as (type, content).
    """

    colours: Colours | None = None
    resolution: Resolution | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    comment: bytes | None = None
    texts: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Picture:
    """An image with its metadata.

    Attributes:
        pixels: uint8 or uint16; (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB, (H, W, 4) RGB and alpha. The
            orientation that ``exif`` states is not applied.
        exif: EXIF data, with the orientation.
        icc: ICC profile of ``pixels``.
        extras: other metadata.
    """

    pixels: Array
    exif: bytes | None = None
    icc: bytes | None = None
    extras: Extras = field(default=Extras())

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        height, width = self.pixels.shape[:2]
        return width, height

    @property
    def orientation(self) -> int:
        """The orientation that ``exif`` states, 1 to 8; 1 by default."""
        return exif_data.orientation(self.exif)

    def enlarged(self, pixels: Array) -> Picture:
        """Return the picture with upscaled pixels; it keeps its size on paper, so its resolution grows."""
        larger = replace(self, pixels=pixels)
        resolution = self.extras.resolution
        if resolution is not None:
            factors = (after / before for before, after in zip(self.size, larger.size, strict=True))
            larger = replace(larger, extras=replace(self.extras, resolution=resolution.times(*factors)))
        return larger.described()

    def described(self, *, turned: bool = False) -> Picture:
        """Return the picture with EXIF data and XMP that match its pixels.

        Args:
            turned: the orientation was applied to the pixels.
        """
        exif, extras = self.exif, self.extras
        if exif:
            exif = exif_data.fitted(exif, self.size, resolution=extras.resolution, turned=turned)
        if extras.xmp:
            xmp = xmp_packet.fitted(extras.xmp, self.size, resolution=extras.resolution, turned=turned)
            extras = replace(extras, xmp=xmp)
        return replace(self, exif=exif, extras=extras)

    def upright(self) -> Picture:
        """Return the picture with the orientation applied to the pixels and reset in EXIF data and XMP."""
        orientation = self.orientation
        turn = TURNS.get(orientation)
        if turn is None:
            return self
        resolution = self.extras.resolution
        if resolution is not None and is_lying(orientation):
            resolution = replace(resolution, x=resolution.y, y=resolution.x)
        pixels = np.ascontiguousarray(turn(self.pixels))
        return replace(self, pixels=pixels, extras=replace(self.extras, resolution=resolution)).described(turned=True)


def to_rgb8(pixels: Array) -> Array:
    """Return pixels of a :class:`Picture` as uint8 (H, W, 3): 16 bits rounded, alpha put on white, grey repeated."""
    pixels = eight_bits(pixels) if pixels.dtype == np.uint16 else pixels
    pixels = onto_white(pixels) if pixels.ndim == 3 and pixels.shape[2] in (2, 4) else pixels
    return np.ascontiguousarray(np.repeat(pixels[..., None], 3, axis=2)) if pixels.ndim == 2 else pixels


def eight_bits(pixels: Array) -> Array:
    """Return uint16 pixels as uint8, rounded."""
    return np.asarray((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def onto_white(pixels: Array) -> Array:
    """Put (H, W, 2 or 4) pixels with straight alpha on white; return (H, W) or (H, W, 3) of the same type."""
    alpha = pixels[..., -1:].astype(np.float32) / np.iinfo(pixels.dtype).max
    white = np.iinfo(pixels.dtype).max
    flat = np.rint(pixels[..., :-1] * alpha + white * (1 - alpha)).astype(pixels.dtype)
    return flat[..., 0] if flat.shape[2] == 1 else flat
