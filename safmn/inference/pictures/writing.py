"""Writing images in every common format, with their colour profile and orientation, whole or not at all.

Pillow writes what has 8 bits, OpenCV and tifffile what has 16.
"""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image

from safmn.errors import DataError, UserError, first_line
from safmn.imaging.io import with_png_chunks
from safmn.inference.pictures.exif import TIFF_TEXTS, load_exif, sized_exif
from safmn.inference.pictures.picture import WRITABLE, Array, Picture, eight_bits, onto_white
from safmn.system.files import atomic_path

logger = logging.getLogger(__name__)


_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}
_GIF_TRANSPARENT = 255  # the last of the palette
_SOFT = 9  # pixels; wider than the edge that upscaling makes of a hard one
_DEEP = ("PNG", "TIFF")  # formats that hold 16 bits
_WITH_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF", "GIF")
_WITH_GREY = ("PNG", "TIFF", "JPEG")  # the others that hold a profile write grey as RGB
_WITH_GREY_ALPHA = ("PNG", "TIFF")
_WITH_ORIENTATION = ("PNG", "JPEG", "WEBP", "AVIF")
_PROFILE_SPACES = {b"RGB ": (3, 4), b"GRAY": (1, 2)}
# How descriptions begin in which programs keep the shape of the file, which is another now.
_OF_THE_FILE = ("ImageJ=", '{"shape"', "<?xml", "<OME")


def write_picture(path: str | os.PathLike[str], picture: Picture, *, quality: int = 95) -> None:
    """Write an image in the format that the suffix says; the file is complete or absent.

    What a format cannot hold is converted, with a warning: 16 bits to 8, alpha onto white. The orientation stays in the
    EXIF data of PNG, JPEG, WebP and AVIF, and is applied to the pixels elsewhere.

    Args:
        picture: what to write.
        quality: of JPEG, WebP and AVIF, 1 to 100; 100 is lossless in WebP.

    Raises:
        DataError: it cannot be written in this format; names the file.
        OSError: the disk is full, the folder read-only.
    """
    path = Path(path)
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: cannot write {path.suffix or 'files without a suffix'}; choose {', '.join(WRITABLE)}")
    picture = _fitted(picture if kind in _WITH_ORIENTATION else picture.upright(), kind, path)
    with atomic_path(path) as temporary:
        if kind == "TIFF":
            _write_tiff(temporary, picture)
            return
        if picture.pixels.dtype == np.uint16:
            _write_deep_png(temporary, picture)
            return
        with writing(path, kind):
            as_saved(picture.pixels, kind).save(temporary, kind, **save_options(kind, picture, quality))


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse, before it is computed, an image that is larger than its format allows.

    Raises:
        DataError: names the file and the limit.
    """
    kind = WRITABLE.get(path.suffix.lower(), "")
    longest = _LONGEST_SIDE.get(kind)
    if longest is not None and max(width, height) > longest:
        raise DataError(
            f"{path}: {kind} holds at most {longest} pixels a side, the result has {width}x{height}; choose another "
            "format (--format png)"
        )


def as_saved(pixels: Array, kind: str) -> Image.Image:
    """Pillow's image of uint8 pixels, for a format: GIF gets its palette here where there is alpha.

    A pixel of a GIF is shown or not. Pillow would take palettes of colours with alpha, of which GIF keeps one entry as
    the transparent one: soft edges become holes, or nothing is transparent.
    """
    if kind != "GIF" or pixels.ndim != 3 or pixels.shape[2] != 4:
        return Image.fromarray(pixels)
    shown = pixels[..., 3] >= 128
    colours = np.ascontiguousarray(pixels[..., :3])
    if shown.any():
        colours[~shown] = colours[shown][0]  # takes no colours from the palette
    image = Image.fromarray(colours).quantize(_GIF_TRANSPARENT)
    image.paste(_GIF_TRANSPARENT, mask=Image.fromarray(~shown))
    image.info["transparency"] = _GIF_TRANSPARENT
    return image


@contextlib.contextmanager
def writing(path: Path, kind: str) -> Iterator[None]:
    """What Pillow's encoders raise, for images that are too large for the format mostly, as DataError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise DataError(f"{path}: cannot be written as {kind} ({first_line(error)}); choose another format") from error


def save_options(kind: str, picture: Picture, quality: int) -> dict[str, Any]:
    """Pillow's options for saving a picture in a format."""
    by_kind: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality, "lossless": quality == 100},
        "AVIF": {"quality": quality, "subsampling": "4:4:4"},
        "PNG": {"compress_level": 4},
    }
    options = {**by_kind.get(kind, {}), "icc_profile": picture.icc}
    if picture.exif and kind in _WITH_ORIENTATION:
        options["exif"] = sized_exif(picture.exif, *picture.size)
    return options


def _fitted(picture: Picture, kind: str, path: Path) -> Picture:
    """The picture with the bits, channels and profile that a format can hold."""
    pixels = picture.pixels
    if pixels.dtype == np.uint16 and kind not in _DEEP:
        logger.warning("%s: %s holds 8 bits; the image had 16.", path, kind)
        pixels = eight_bits(pixels)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels in (2, 4) and kind not in _WITH_ALPHA:
        logger.warning("%s: %s holds no transparency; the image is laid onto white.", path, kind)
        pixels = onto_white(pixels)
    elif channels == 2 and (kind not in _WITH_GREY_ALPHA or pixels.dtype == np.uint16):
        pixels = pixels[..., [0, 0, 0, 1]]
    if kind == "GIF" and pixels.ndim == 3 and pixels.shape[2] == 4 and _is_soft(pixels[..., 3]):
        logger.warning("%s: a pixel of a GIF is shown or not; the image is half transparent in places.", path)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 1 and pixels.ndim == 3:
        pixels = pixels[..., 0]
    space = picture.icc[16:20] if picture.icc else b""
    held = 3 if channels == 1 and kind not in _WITH_GREY else channels
    icc = picture.icc if held in _PROFILE_SPACES.get(space, ()) else None
    return replace(picture, pixels=np.ascontiguousarray(pixels), icc=icc)


def _is_soft(alpha: Array) -> bool:
    """Whether there is more between 0 and full than the edges of an image that was cut out and enlarged."""
    partial = (alpha > 0) & (alpha < 255)
    return bool(cv2.erode(partial.astype(np.uint8), np.ones((_SOFT, _SOFT), np.uint8)).any())


def _write_deep_png(path: Path, picture: Picture) -> None:
    """OpenCV writes 16 bits but no metadata: its chunks are put in behind the header."""
    pixels = picture.pixels
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    _, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 4])
    chunks = []
    if picture.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc)))
    if picture.exif:
        chunks.append((b"eXIf", sized_exif(picture.exif, *picture.size).removeprefix(b"Exif\0\0")))
    path.write_bytes(with_png_chunks(encoded.tobytes(), chunks))


def _write_tiff(path: Path, picture: Picture) -> None:
    """Pillow cannot put EXIF data into a compressed file; of it, the tags that TIFF itself has are kept."""
    pixels = picture.pixels
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    exif = load_exif(picture.exif)
    tags: list[tuple[int, str, int, int | str, bool]] = []
    for tag in TIFF_TEXTS:
        if isinstance(text := exif.get(tag), str) and not text.startswith(_OF_THE_FILE):
            tags.append((int(tag), "s", 0, text, True))
    tifffile.imwrite(
        path,
        pixels,
        photometric="minisblack" if channels <= 2 else "rgb",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        iccprofile=picture.icc,
        extratags=tags,
        metadata=None,
        software=False,
    )
