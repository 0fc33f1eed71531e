"""Write images with their metadata in every common format. A file is written completely or not at all.

Pillow writes 8 bits, OpenCV 16-bit PNG, imagecodecs 10-bit AVIF, and tifffile TIFF.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from safmn.errors import DataError, UserError, first_line
from safmn.imaging.boxes import with_code_points
from safmn.imaging.io import with_png_chunks
from safmn.inference.choices import WRITABLE
from safmn.inference.pictures import exif as exif_data
from safmn.inference.pictures import png
from safmn.inference.pictures.fitting import AVIF_BITS, fitted
from safmn.inference.pictures.picture import Array, Picture
from safmn.inference.pictures.tiff_writing import write_tiff
from safmn.system.files import atomic_path

logger = logging.getLogger(__name__)


_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}
_GIF_TRANSPARENT = 255  # the last palette entry
_APP13, _PHOTOSHOP, _IPTC = b"\xff\xed", b"Photoshop 3.0\0", b"8BIM\x04\x04\0\0"
_SRGB_POINTS = (1, 13)  # ColourPrimaries and TransferCharacteristics (H.273)


def write_picture(
    path: str | os.PathLike[str], picture: Picture, *, quality: int = 95, flush_folder: bool = True
) -> None:
    """Write an image atomically in the format given by the suffix.

    What the format cannot hold is converted, with a warning: 16 bits to 8, alpha onto white, other colours to sRGB.
    Metadata that it cannot hold is dropped and named in one warning. The orientation stays in the EXIF data of PNG,
    JPEG and WebP; in other formats it is applied to the pixels.

    Args:
        path: the file, with a suffix of :data:`safmn.inference.pictures.WRITABLE`.
        picture: the picture to write.
        quality: quality of JPEG, WebP and AVIF, 1 to 100; 100 is lossless in WebP.
        flush_folder: see :func:`safmn.system.files.atomic_path`.

    Raises:
        DataError: the picture cannot be written in this format; the message names the file.
        OSError: the disk is full or the folder is read-only.
    """
    path = Path(path)
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: cannot write {path.suffix or 'files without a suffix'}; choose {', '.join(WRITABLE)}")
    picture = fitted(picture, kind, path)
    with atomic_path(path, flush_folder=flush_folder) as temporary:
        if kind == "TIFF":
            write_tiff(temporary, picture)
            return
        with writing(path, kind):
            temporary.write_bytes(finished(_encoded(picture, kind, quality), kind, picture))


def _encoded(picture: Picture, kind: str, quality: int) -> bytes:
    """Return the encoded file, without what :func:`finished` adds."""
    if picture.pixels.dtype == np.uint16 and kind == "AVIF":
        return _deep_avif(picture.pixels, quality)
    if picture.pixels.dtype == np.uint16:
        pixels = picture.pixels
        if pixels.ndim == 3:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
        return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 4])[1].tobytes()
    stream = io.BytesIO()
    as_saved(picture.pixels, kind).save(stream, kind, **save_options(kind, picture, quality))
    return stream.getvalue()


def _deep_avif(pixels: Array, quality: int) -> bytes:
    """Return a 10-bit AVIF file that states sRGB; Pillow writes only 8 bits."""
    white = 2**AVIF_BITS - 1
    levels = ((pixels.astype(np.uint32) * white + 32767) // 65535).astype(np.uint16)
    layout = "400" if pixels.ndim == 2 else "444"
    file = bytes(imagecodecs.avif_encode(levels, level=quality, bitspersample=AVIF_BITS, pixelformat=layout))
    return with_code_points(file, _SRGB_POINTS)


def finished(file: bytes, kind: str, picture: Picture) -> bytes:
    """Add what encoders do not write to an encoded file: PNG's descriptive chunks, the code points of AVIF."""
    if kind == "PNG":
        return with_png_chunks(file, _png_chunks(picture))
    colours = picture.extras.colours
    if kind == "AVIF" and colours is not None and colours.points is not None:
        return with_code_points(file, colours.points)
    return file


def _png_chunks(picture: Picture) -> list[tuple[bytes, bytes]]:
    """Return the chunks that describe a picture, in an order that PNG allows before the pixels."""
    extras = picture.extras
    chunks = list(extras.colours.chunks) if extras.colours else []
    if picture.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc)))
    if extras.resolution:
        chunks.append(png.resolution_chunk(extras.resolution))
    if picture.exif:
        chunks.append((b"eXIf", exif_data.block_of(picture.exif)))
    if extras.xmp:
        chunks.append(png.xmp_chunk(extras.xmp))
    if extras.iptc:
        chunks.append(png.iptc_chunk(extras.iptc))
    if extras.comment:
        chunks.append(png.comment_chunk(extras.comment))
    return [*chunks, *extras.texts]


def check_size(path: Path, width: int, height: int) -> None:
    """Check, before an image is computed, that its format allows this size.

    Raises:
        DataError: the image is too large; the message names the file and the limit.
    """
    kind = WRITABLE.get(path.suffix.lower(), "")
    longest = _LONGEST_SIDE.get(kind)
    if longest is not None and max(width, height) > longest:
        raise DataError(
            f"{path}: {kind} holds at most {longest} pixels per side, but the result has {width}x{height}; choose "
            "another format (--format png)"
        )


def as_saved(pixels: Array, kind: str) -> Image.Image:
    """Return uint8 pixels as a Pillow image to save in a format; GIF with alpha gets its palette here.

    A pixel of a GIF is either opaque or transparent. Pillow would make a palette of colours with alpha, of which GIF
    keeps one entry as the transparent one: soft edges become holes, or nothing is transparent.
    """
    if kind != "GIF" or pixels.ndim != 3 or pixels.shape[2] != 4:
        return Image.fromarray(pixels)
    shown = pixels[..., 3] >= 128
    colours = np.ascontiguousarray(pixels[..., :3])
    if shown.any():
        colours[~shown] = colours[shown][0]  # so that transparent pixels use no palette entries
    image = Image.fromarray(colours).quantize(_GIF_TRANSPARENT)
    image.paste(_GIF_TRANSPARENT, mask=Image.fromarray(~shown))
    image.info["transparency"] = _GIF_TRANSPARENT
    return image


@contextlib.contextmanager
def writing(path: Path, kind: str) -> Iterator[None]:
    """Convert errors of Pillow's encoders in the block into DataError; most mean that the image is too large."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # a disk error
            raise
        raise DataError(f"{path}: cannot be written as {kind} ({first_line(error)}); choose another format") from error


def save_options(kind: str, picture: Picture, quality: int) -> dict[str, Any]:
    """Return Pillow's options for saving a picture that :func:`fitted` has fitted to the format."""
    by_kind: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality, "lossless": quality == 100},
        "AVIF": {"quality": quality, "subsampling": "4:4:4"},
        "PNG": {"compress_level": 4},
    }
    options = dict(by_kind.get(kind, {}))
    extras = picture.extras
    if kind in ("JPEG", "WEBP", "AVIF"):
        options["icc_profile"] = picture.icc
        if picture.exif:
            options["exif"] = (exif_data.PREFIX if kind == "JPEG" else b"") + exif_data.block_of(picture.exif)
        if extras.xmp:
            options["xmp"] = extras.xmp
    if extras.comment and kind in ("JPEG", "GIF"):
        options["comment"] = extras.comment
    if extras.resolution and kind in ("JPEG", "BMP"):
        options["dpi"] = (extras.resolution.x, extras.resolution.y)
    if extras.iptc and kind == "JPEG":
        options["extra"] = _photoshop_segment(extras.iptc)
    return options


def _photoshop_segment(iptc: bytes) -> bytes:
    """Return the JPEG segment of Photoshop resources with IPTC data."""
    content = _PHOTOSHOP + _IPTC + len(iptc).to_bytes(4, "big") + iptc + b"\0" * (len(iptc) % 2)
    return _APP13 + (len(content) + 2).to_bytes(2, "big") + content
