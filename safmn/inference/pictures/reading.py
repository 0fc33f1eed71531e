"""Reading images of every common format and mode.

Pillow reads what has 8 bits; TIFF and what has more is read with libraries that keep the depth.
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
from safmn.imaging.io import decode_deep, widened
from safmn.imaging.profiles import cmyk_to_rgb, to_srgb
from safmn.imaging.tiff import RAW_ADVICE, is_tiff, read_tiff
from safmn.inference.films.animation_frames import composed
from safmn.inference.pictures import floats
from safmn.inference.pictures.heif import is_heif, read_heif
from safmn.inference.pictures.metadata import metadata, tiff_metadata
from safmn.inference.pictures.picture import Array, Picture

logger = logging.getLogger(__name__)


MAX_PIXELS = 2**28
"""Images with more pixels (268 million) are refused unless a larger limit is given."""
_HEAD = 64  # bytes that tell the kind of a file
_RAW_SUFFIXES = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".ptx"),
    *(".srw", ".3fr", ".fff", ".iiq", ".dcr", ".kdc", ".k25", ".erf", ".mef", ".mos", ".mrw", ".rwl", ".x3f", ".gpr"),
)
_RAW_SIGNATURES = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM")
_CANON = b"ftypcrx "
_ISO_KINDS = (b"jP  ", b"ftyp")  # JPEG 2000, AVIF and HEIC


def open_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image and check its size, without decoding it.

    Raises:
        DataError: missing, empty, not an image, damaged, or with more than ``max_pixels``; names the file.
    """
    path = Path(path)
    _check_not_raw(path, head_of(path))
    try:
        image = Image.open(path)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = "it is not an image of a known kind" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: {reason}") from error
    except Exception as error:  # decoders raise whatever a damaged header leads to
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error
    try:
        check_pixels(path, *image.size, max_pixels)
    except DataError:
        image.close()
        raise
    return image


def check_pixels(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that is too large.

    Raises:
        DataError: names the file.
    """
    if width * height > max_pixels:
        raise DataError(
            f"{path}: {width}x{height} pixels are more than the limit of {max_pixels:,}; "
            "a decompression bomb? If not, raise the limit (--max-pixels)"
        )


def head_of(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a file, which tell its kind.

    Raises:
        DataError: it is missing or empty; names it.
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
    """Whether a file that begins like this holds no animation, and is not for Pillow to open."""
    return is_tiff(head) or is_heif(head)


def read_picture(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a still image (of an animation the first frame), whatever its format and mode.

    More than 8 bits become 16; palettes, CMYK (through its profile) and other colour spaces become RGB; transparency
    becomes an alpha channel. What is left out or taken for granted is said, as a warning.

    Raises:
        DataError: as :func:`open_image`, or the pixels cannot be decoded; names the file.
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
            logger.warning("%s: the first of its %d pictures is read.", path, others + 1)
        raw_mode = _raw_mode(image)  # known only until the pixels are decoded
        tiles: Any = getattr(image, "tile", ())
        is_part = image.format == "GIF" and any(tile[1] != (0, 0, *image.size) for tile in tiles)
        image.load()  # before the metadata, in whose reading Pillow would do it; OpenCV lets damage pass
        exif, icc, extras = metadata(image)
        if is_part:  # Pillow fills the rest of the screen with a colour
            return Picture(next(composed(path, "GIF", image.size)), exif, icc, extras)
        pixels = _deep_pixels(path, image, raw_mode)
        if pixels is None:
            pixels, icc = _plain(image, icc)
        return Picture(pixels, exif, icc, extras)


@contextlib.contextmanager
def decoding(path: str | os.PathLike[str], part: str = "it") -> Iterator[None]:
    """What decoders raise, which is whatever a damaged file leads to, as DataError that names the file and the part."""
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
    """How the pixels stand in a file: Pillow's name of it, or the value of white in a portable map."""
    for codec, _, _, arguments in image.tile:  # type: ignore[attr-defined]
        if codec in ("ppm", "ppm_plain"):
            return int(arguments[1])
        return str(arguments if isinstance(arguments, str) else (arguments or ("",))[0])
    return ""


def _deep_pixels(path: Path, image: Image.Image, raw_mode: str | int) -> Array | None:
    """The pixels of a file with more than 8 bits a channel, uint16; None where it has 8."""
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
    key = image.info.get("transparency") if is_grey_png else None  # OpenCV knows it of RGB only
    return pixels if key is None else np.dstack([pixels, np.where(pixels == key, 0, 65535).astype(np.uint16)])


def _with_opencv(path: Path) -> Array:
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.dtype != np.uint16:
        raise DataError(f"{path}: cannot be decoded (damaged, or a kind of 16-bit image that OpenCV does not know)")
    if pixels.ndim == 2:
        return np.asarray(pixels)
    order = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    return np.asarray(cv2.cvtColor(pixels, order[pixels.shape[2]]))


def _plain(image: Image.Image, icc: bytes | None) -> tuple[Array, bytes | None]:
    """The pixels of an image with 8 bits, as grey or RGB with or without alpha, and the profile that then holds."""
    path: Any = image.filename  # type: ignore[attr-defined]
    if image.mode == "I":
        raise DataError(f"{path}: images of 32-bit numbers are not supported; convert it to 16 bits")
    if image.mode == "CMYK":
        return _from_cmyk(np.array(image), icc, path), None
    if image.mode == "LAB":
        icc = None
    if image.has_transparency_data:
        return np.array(image.convert("LA" if image.mode in ("L", "LA", "La", "1") else "RGBA")), icc
    return np.array(image.convert("L" if image.mode in ("L", "1") else "RGB")), icc


def _from_cmyk(pixels: Array, icc: bytes | None, path: Any) -> Array:
    """CMYK to sRGB, through the profile of the image where there is one."""
    if icc is not None:
        try:
            return to_srgb(pixels, icc)
        except ValueError as error:
            logger.warning("%s: its CMYK profile cannot be used (%s).", path, first_line(error))
    logger.warning("%s: CMYK without a profile: its colours are computed by the plain formula.", path)
    return cmyk_to_rgb(pixels)
