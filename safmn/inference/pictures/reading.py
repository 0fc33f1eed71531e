"""Read images of every common format and mode.

Pillow reads files with 8 bits. Other libraries, which keep the bit depth, read TIFF and deeper files.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from safmn.errors import DataError, UserError, first_line
from safmn.imaging.icc_profiles import cmyk_to_rgb, to_srgb
from safmn.imaging.io import decode_deep, widened
from safmn.imaging.tiff import RAW_ADVICE, is_tiff, read_tiff
from safmn.inference.choices import MAX_PIXELS
from safmn.inference.films.animation_frames import composed
from safmn.inference.pictures import floats
from safmn.inference.pictures.heif import is_heif, read_heif
from safmn.inference.pictures.metadata import metadata, tiff_metadata
from safmn.inference.pictures.picture import Array, Picture

logger = logging.getLogger(__name__)

_HEAD = 64  # bytes from which the format is recognised
_RAW_SUFFIXES = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".ptx"),
    *(".srw", ".3fr", ".fff", ".iiq", ".dcr", ".kdc", ".k25", ".erf", ".mef", ".mos", ".mrw", ".rwl", ".x3f", ".gpr"),
)
_RAW_SIGNATURES = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM")
_CANON = b"ftypcrx "
_ISO_KINDS = (b"jP  ", b"ftyp")  # box types that begin JPEG 2000, and AVIF and HEIC


def open_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image and check its size, without decoding it.

    Raises:
        DataError: the file is missing, empty, not an image, a camera's raw file, damaged, or has more than
            ``max_pixels``. The message names the file.
    """
    path = Path(path)
    _check_not_raw(path, head_of(path))
    try:
        image = Image.open(path)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = "not an image in a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: {reason}") from error
    except Exception as error:  # a damaged header can make decoders raise anything
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error
    try:
        check_pixels(path, *image.size, max_pixels)
    except DataError:
        image.close()
        raise
    return image


def check_pixels(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Check that an image is not too large.

    Raises:
        DataError: it has more than ``max_pixels``; the message names the file.
    """
    if width * height > max_pixels:
        raise DataError(
            f"{path}: {width}x{height} pixels exceed the limit of {max_pixels:,}, which protects against decompression "
            "bombs. If the image is genuine, raise the limit (--max-pixels)"
        )


def head_of(path: str | os.PathLike[str]) -> bytes:
    """Return the first bytes of a file, from which its format is recognised.

    Raises:
        DataError: the file is missing, unreadable or empty; the message names it.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not head:
        raise DataError(f"{path}: the file is empty")
    return head


def is_single(head: bytes) -> bool:
    """Return whether a file with these first bytes is TIFF or HEIF, which hold no animation and bypass Pillow."""
    return is_tiff(head) or is_heif(head)


def read_picture(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a still image, or the first frame of an animation, in any supported format and mode.

    More than 8 bits become 16. Palettes, CMYK (through its profile) and other colour spaces become RGB. Transparency
    becomes an alpha channel. Warnings report what is left out or assumed.

    Raises:
        DataError: as :func:`open_image`, or the pixels cannot be decoded. The message names the file.
    """
    path = Path(path)
    head = head_of(path)
    if is_tiff(head):
        return _read_tiff(path, head, max_pixels)
    if is_heif(head):
        with decoding(path):
            return read_heif(path, lambda width, height: check_pixels(path, width, height, max_pixels))
    with open_image(path, max_pixels) as image, decoding(path):
        if image.format == "MPO" and (others := getattr(image, "n_frames", 1) - 1):
            logger.warning("%s: only the first of its %d images is read.", path, others + 1)
        raw_mode = _raw_mode(image)  # lost when the pixels are decoded
        tiles: Any = getattr(image, "tile", ())
        is_part = image.format == "GIF" and any(tile[1] != (0, 0, *image.size) for tile in tiles)
        image.load()  # even if OpenCV decodes the pixels, since it ignores damage; reading the metadata would load, too
        exif, icc, extras = metadata(image)
        if is_part:  # Pillow would fill the rest of the canvas with a colour
            return Picture(next(composed(path, "GIF", image.size)), exif, icc, extras)
        pixels = _deep_pixels(path, image, raw_mode)
        if pixels is None:
            pixels, icc = _plain(image, icc)
        return Picture(pixels, exif, icc, extras)


@contextlib.contextmanager
def decoding(path: str | os.PathLike[str], part: str = "it") -> Iterator[None]:
    """Convert errors of decoders in the block, of any type, into a DataError that names the file and the part."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"{path}: {part} cannot be decoded ({first_line(error)})") from error


def _check_not_raw(path: Path, head: bytes) -> None:
    raw = head.startswith(_RAW_SIGNATURES) or head[4:12] == _CANON or path.suffix.lower() in _RAW_SUFFIXES
    if raw:
        raise DataError(f"{path}: {RAW_ADVICE}")


def _read_tiff(path: Path, head: bytes, max_pixels: int) -> Picture:
    _check_not_raw(path, head)

    def from_floats(samples: Array) -> Array:
        pixels, note = floats.to_deep(samples)
        if note:
            logger.warning("%s: %s.", path, note)
        return pixels

    try:
        image = read_tiff(path, floats=from_floats, max_pixels=max_pixels)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    for note in image.notes:
        logger.warning("%s: %s.", path, note)
    return Picture(image.pixels, *tiff_metadata(path, image))


def _raw_mode(image: Image.Image) -> str | int:
    """Return the pixel layout in the file by Pillow's name, or for a PNM file the value of white."""
    for codec, _, _, arguments in image.tile:  # type: ignore[attr-defined]
        if codec in ("ppm", "ppm_plain"):
            return int(arguments[1])
        return str(arguments if isinstance(arguments, str) else (arguments or ("",))[0])
    return ""


def _deep_pixels(path: Path, image: Image.Image, raw_mode: str | int) -> Array | None:
    """Return the pixels as uint16 if the file has more than 8 bits per channel; None if it has 8."""
    if image.mode == "F":
        pixels, note = floats.to_deep(np.array(image)[..., None])
        if note:
            logger.warning("%s: %s.", path, note)
        return pixels[..., 0]
    if isinstance(raw_mode, int):
        return widened(_with_opencv(path), raw_mode) if raw_mode > 255 else None
    if image.format in ("AVIF", "JPEG2000"):
        return decode_deep(path.read_bytes())
    if not raw_mode.endswith((";16B", ";16L", ";16N")) and not image.mode.startswith(
        "I;16"
    ):  # "BGR;16" is 5, 6, 5 bits
        return None
    pixels = _with_opencv(path)
    is_grey_png = image.format == "PNG" and pixels.ndim == 2
    key = image.info.get("transparency") if is_grey_png else None  # OpenCV applies it only to RGB
    return pixels if key is None else np.dstack([pixels, np.where(pixels == key, 0, 65535).astype(np.uint16)])


def _with_opencv(path: Path) -> Array:
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.dtype != np.uint16:
        raise DataError(f"{path}: cannot be decoded (damaged, or a type of 16-bit image that OpenCV does not support)")
    if pixels.ndim == 2:
        return np.asarray(pixels)
    order = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    return np.asarray(cv2.cvtColor(pixels, order[pixels.shape[2]]))


def _plain(image: Image.Image, icc: bytes | None) -> tuple[Array, bytes | None]:
    """Return the pixels of an 8-bit image as grey or RGB, with or without alpha, and the profile that fits them."""
    path: Any = image.filename  # type: ignore[attr-defined]
    if image.mode == "I":
        raise DataError(f"{path}: images with 32-bit integers are not supported; convert it to 16 bits")
    if image.mode == "CMYK":
        return _from_cmyk(np.array(image), icc, path), None
    if image.mode == "LAB":
        icc = None
    if image.has_transparency_data:
        return np.array(image.convert("LA" if image.mode in ("L", "LA", "La", "1") else "RGBA")), icc
    return np.array(image.convert("L" if image.mode in ("L", "1") else "RGB")), icc


def _from_cmyk(pixels: Array, icc: bytes | None, path: Any) -> Array:
    """Convert CMYK to sRGB, through the image's profile if it has a usable one."""
    if icc is not None:
        try:
            return to_srgb(pixels, icc)
        except ValueError as error:
            logger.warning("%s: its CMYK profile cannot be used (%s).", path, first_line(error))
    logger.warning("%s: CMYK without a usable profile: its colours are converted with a simple formula.", path)
    return cmyk_to_rgb(pixels)
