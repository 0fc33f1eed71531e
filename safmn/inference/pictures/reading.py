"""Reading images of every common format and mode.

Pillow reads what has 8 bits, OpenCV what has 16 (Pillow would cut it to 8).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from safmn.errors import DataError, UserError, first_line
from safmn.imaging.orientation import TURNS
from safmn.inference.pictures.exif import metadata, without_orientation
from safmn.inference.pictures.picture import Array, Picture

logger = logging.getLogger(__name__)


MAX_PIXELS = 2**28
"""Images with more pixels (268 million) are refused unless a larger limit is given."""
# Tags PhotometricInterpretation, PlanarConfiguration, ExtraSamples
_TIFF_MEANING, _TIFF_PLANES, _TIFF_EXTRA = 262, 284, 338


def open_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image and check its size, without decoding it.

    Raises:
        DataError: missing, empty, not an image, damaged, or with more than ``max_pixels``; names the file.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
        image = Image.open(path)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = _unknown_kind(path) if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: {reason}") from error
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever a damaged header leads to
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error
    if image.width * image.height > max_pixels:
        image.close()
        raise DataError(
            f"{path}: {image.width}x{image.height} pixels are more than the limit of {max_pixels:,}; "
            "a decompression bomb? If not, raise the limit (--max-pixels)"
        )
    return image


def read_picture(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a still image (of an animation the first frame), whatever its format and mode.

    16 bits stay 16; palettes, CMYK (through its profile) and other colour spaces become RGB; transparency becomes an
    alpha channel.

    Raises:
        DataError: as :func:`open_image`, or the pixels cannot be decoded; names the file.
    """
    with open_image(path, max_pixels) as image, decoding(path):
        pages = getattr(image, "n_frames", 1)
        if image.format == "TIFF" and pages > 1:
            logger.warning("%s: only the first of its %d pages is read.", path, pages)
        white = _white(image)  # known only until the pixels are decoded
        image.load()  # before the metadata, in whose reading Pillow would do it; OpenCV lets damage pass
        exif, icc = metadata(image)
        if image.format == "TIFF":
            exif = without_orientation(exif)  # it is applied to the pixels when they are decoded
        if white > 255:
            return Picture(_read_deep(Path(path), image, white), exif, icc)
        plain, icc = _plain_mode(image, icc)
        return Picture(np.array(plain), exif, icc)


@contextlib.contextmanager
def decoding(path: str | os.PathLike[str], part: str = "it") -> Iterator[None]:
    """What decoders raise, which is whatever a damaged file leads to, as DataError that names the file and the part."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"{path}: {part} cannot be decoded ({first_line(error)})") from error


def _unknown_kind(path: Path) -> str:
    """What is to be said of a file that Pillow does not know, such as TIFF with unusual pixels."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            kind = f"TIFF with {page.samplesperpixel} channels of {page.dtype}"
    except Exception:  # as above; most often it is no TIFF file
        return "it is not an image of a known kind"
    return f"{kind} is not supported; convert it to grey, RGB or RGBA with 8 or 16 bits"


def _white(image: Image.Image) -> int:
    """The value of white in an opened file; above 255 where it has more than 8 bits a channel."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        return 65535 if max(bits if isinstance(bits, tuple) else (bits,)) == 16 else 255
    for codec, _, _, arguments in image.tile:  # type: ignore[attr-defined]
        if codec in ("ppm", "ppm_plain"):
            return int(arguments[1])
        raw_mode = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
        if str(raw_mode).endswith((";16B", ";16L", ";16N")):  # not "BGR;16", which is 5, 6 and 5 bits
            return 65535
    return 65535 if image.mode.startswith("I;16") else 255


def _read_deep(path: Path, image: Image.Image, white: int) -> Array:
    """The pixels of a file with more than 8 bits a channel, which Pillow has opened as ``image``, scaled to 16."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    pixels = _read_planes(path) if tags.get(_TIFF_PLANES) == 2 else _read_with_opencv(path)
    if white != 65535:
        pixels = ((np.minimum(pixels, white).astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)
    if pixels.ndim == 2:
        pixels = 65535 - pixels if tags.get(_TIFF_MEANING) == 0 else pixels  # 0 is white
        key = image.info.get("transparency") if image.format == "PNG" else None  # OpenCV knows it of RGB only
        return pixels if key is None else np.dstack([pixels, np.where(pixels == key, 0, 65535).astype(np.uint16)])
    return _straight(pixels) if tags.get(_TIFF_EXTRA) in (1, (1,)) else pixels


def _read_planes(path: Path) -> Array:
    """A TIFF file with one channel after the other: OpenCV mixes them up."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        pixels = np.moveaxis(page.asarray(), 0, -1)
        turn = TURNS.get(page.tags.valueof(ExifTags.Base.Orientation, 1))
    return np.ascontiguousarray(pixels if turn is None else turn(pixels))


def _read_with_opencv(path: Path) -> Array:
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.dtype != np.uint16:
        raise DataError(f"{path}: cannot be decoded (damaged, or a kind of 16-bit image that OpenCV does not know)")
    if pixels.ndim == 2:
        return np.asarray(pixels)
    order = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    return np.asarray(cv2.cvtColor(pixels, order[pixels.shape[2]]))


def _straight(pixels: Array) -> Array:
    """uint16 (H, W, C) whose colours are multiplied by the alpha channel, divided by it."""
    alpha = pixels[..., -1:]
    colours = np.rint(pixels[..., :-1] * (65535 / np.maximum(alpha, 1)))
    return np.concatenate([np.minimum(colours, 65535).astype(np.uint16), alpha], axis=2)


def _plain_mode(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, bytes | None]:
    """An image as L, LA, RGB or RGBA, with the profile that then holds."""
    if image.mode in ("I", "F"):
        raise DataError(f"{image.filename}: 32-bit images are not supported; convert it to 16 bits")  # type: ignore[attr-defined]
    if image.mode == "CMYK":
        return _from_cmyk(image, icc), None
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("L", "LA", "1") else "RGBA"), icc
    return image.convert("L" if image.mode in ("L", "1") else "RGB"), icc


def _from_cmyk(image: Image.Image, icc: bytes | None) -> Image.Image:
    """CMYK to sRGB, through the profile of the image where there is one."""
    if icc is not None:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None
            return converted
        except (ImageCms.PyCMSError, OSError) as error:
            logger.warning("A CMYK profile cannot be used (%s): converting without it.", first_line(error))
    return image.convert("RGB")
