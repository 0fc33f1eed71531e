"""Reading TIFF: every common kind of samples, as grey or RGB of 8 or 16 bits, upright.

tifffile and imagecodecs decode; what the samples mean (depth, colour space, extra channels, orientation, which page is
the image) is read from the tags here. Pillow and OpenCV guess some of these: of 12 bits, of channels that are no alpha,
of planes, and of files that begin with a thumbnail.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np
import tifffile

from safmn.errors import DataError, UserError, first_line
from safmn.imaging.icc_profiles import channels_of, cmyk_to_rgb, lab_to_srgb, make_profile, space_of, to_srgb
from safmn.imaging.orientation import is_lying, upright
from safmn.value_types import Array

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UNSIGNED, _FLOAT = 1, 3  # SampleFormat
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB, _ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _CIELAB: 3, _ICCLAB: 3}
_SENSOR = (32803, 34892)  # PhotometricInterpretation of sensor data: colour filter array, linear raw
_ASSOCIATED, _UNASSOCIATED = 1, 2  # ExtraSamples
_ORIENTATION, _INK_SET, _DNG_VERSION, _ICC, _SUBFILE, _OLD_SUBFILE = 274, 332, 50706, 34675, 254, 255
_WHITE_POINT, _PRIMARIES, _TRANSFER = 318, 319, 301
_CMYK_INKS = 1
_JPEG = (6, 7)  # Compression
_LAST_OF_PIXELS = 532  # the last tag of TIFF 6.0 that says how to decode
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType

RAW_ADVICE = (
    "a camera's raw file, which must be developed first: export a TIFF, PNG or JPEG from darktable, RawTherapee or the "
    "camera maker's program"
)

Floats = Callable[[Array], Array]
"""Makes uint16 of floating-point samples, or raises DataError."""


@dataclass(frozen=True)
class TiffImage:
    """A decoded TIFF file.

    Attributes:
        pixels: uint8 or uint16; (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB, (H, W, 4) RGB and alpha; alpha is
            straight; upright.
        icc: the colour profile of these pixels.
        offset: where the directory of the page begins in the file.
        notes: what was left out or taken for granted, in words.
    """

    pixels: Array
    icc: bytes | None
    offset: int
    notes: tuple[str, ...]


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins like this is TIFF."""
    return head[:4] in _SIGNATURES


def read_tiff(
    file: str | os.PathLike[str] | BinaryIO, *, floats: Floats | None = None, max_pixels: int | None = None
) -> TiffImage:
    """Decode the image of a TIFF file: the first page that is neither a thumbnail nor a mask.

    Args:
        file: a path or an open file.
        floats: what to do with floating-point samples; None refuses them.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        DataError: a raw file, a kind that is not supported, too many pixels, or damaged. The message names no file.
    """
    try:
        with _opened(file) as tiff:
            page, notes = _main_page(tiff)
            if max_pixels is not None and page.imagewidth * page.imagelength > max_pixels:
                raise DataError(
                    f"{page.imagewidth}x{page.imagelength} pixels are more than the limit of {max_pixels:,}; "
                    "a decompression bomb? If not, raise the limit (--max-pixels)"
                )
            samples, extra = _samples(page, tiff, notes)
            pixels, icc = _colours(samples, page, floats, notes)
            if extra is not None:
                pixels = _with_alpha(pixels, *extra)
            return TiffImage(upright(pixels, _orientation(page)), icc, page.offset, tuple(notes))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads to
        raise DataError(f"cannot be decoded as TIFF ({first_line(error)})") from error


def tiff_layout(file: str | os.PathLike[str] | BinaryIO) -> tuple[int, int, int]:
    """(height, width, channels without alpha) of what :func:`read_tiff` gives, without decoding the pixels.

    Raises:
        DataError: as there.
    """
    try:
        with _opened(file) as tiff:
            page, _ = _main_page(tiff)
            sides = page.imagelength, page.imagewidth
            height, width = sides[::-1] if is_lying(_orientation(page)) else sides
            return height, width, 1 if int(page.photometric) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) else 3
    except UserError:
        raise
    except Exception as error:  # as above
        raise DataError(f"cannot be read as TIFF ({first_line(error)})") from error


class _Complaints(logging.Filter):
    """Keeps what tifffile logs as an error, by thread: it goes on with what is left of a damaged file."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged: not while the thread reads a file here."""
        found: list[str] | None = getattr(self.threads, "found", None)
        if found is None:
            return True
        if record.levelno >= logging.ERROR:
            found.append(record.getMessage())
        return False


_complaints = _Complaints()
logging.getLogger("tifffile").addFilter(_complaints)


@contextlib.contextmanager
def _opened(file: str | os.PathLike[str] | BinaryIO) -> Iterator[tifffile.TiffFile]:
    """A TIFF file whose directories are whole; of tags that say nothing of the pixels, damage is let pass.

    Raises:
        DataError: it is damaged.
    """
    found = _complaints.threads.found = list[str]()
    try:
        with tifffile.TiffFile(file) as tiff:
            _ = [page.aspage() for page in tiff.pages]
            for message in found:
                tag = re.search(r"TiffTag (\d+)", message)
                if tag is None or int(tag.group(1)) <= _LAST_OF_PIXELS:
                    raise DataError(f"cannot be decoded as TIFF (damaged: {message})")
            yield tiff
    finally:
        del _complaints.threads.found


def _main_page(tiff: tifffile.TiffFile) -> tuple[Any, list[str]]:
    """The page that is the image, and what is to be said about the others."""
    top = list(tiff.pages)
    pages = [page.aspage() for entry in top for page in (entry, *(entry.pages or ()))]
    if _is_raw(tiff, pages):
        raise DataError(RAW_ADVICE)
    images = [page for page in pages if not _subfile(page) & (_REDUCED | _MASK)] or pages
    first = images[0]
    page = next((other for other in images[1:] if _is_thumbnail(first, other)), first)
    notes = []
    if len(images) > 1:
        which = "the first" if page is first else f"page {images.index(page) + 1}"
        notes.append(f"only {which} of its {len(images)} pages is read")
    return page, notes


def _is_raw(tiff: tifffile.TiffFile, pages: list[Any]) -> bool:
    tiff.filehandle.seek(8)
    canon = tiff.filehandle.read(2) == b"CR"
    return canon or any(_DNG_VERSION in page.tags or int(page.photometric or 0) in _SENSOR for page in pages)


def _subfile(page: Any) -> int:
    """NewSubfileType; the older tag's value 2 means reduced."""
    old = page.tags.valueof(_OLD_SUBFILE, 0)
    return int(page.tags.valueof(_SUBFILE, 0) or 0) | (_REDUCED if old == 2 else 0)


def _is_thumbnail(first: Any, other: Any) -> bool:
    """Whether ``first`` shows ``other`` at half its size or less, by their sizes."""
    factors = [
        there / max(here, 1)
        for here, there in ((first.imagewidth, other.imagewidth), (first.imagelength, other.imagelength))
    ]
    return min(factors) >= 2 and max(factors) < 1.05 * min(factors)


def _orientation(page: Any) -> int:
    value = page.tags.valueof(_ORIENTATION, 1)
    return int(value) if isinstance(value, int) else 1


def _samples(page: Any, tiff: tifffile.TiffFile, notes: list[str]) -> tuple[Array, tuple[Array, bool] | None]:
    """The samples of the colour channels, (H, W, C) as in the file, and the alpha channel: scaled, and whether colours
    are multiplied by it."""
    meaning, bits = int(page.photometric), page.bitspersample
    if meaning not in _CHANNELS or (meaning == _CMYK and page.tags.valueof(_INK_SET, _CMYK_INKS) != _CMYK_INKS):
        raise DataError(f"a TIFF file of the colour space {_name_of(page)} is not supported; convert it to RGB")
    if isinstance(bits, tuple):
        raise DataError(f"a TIFF file with {bits} bits a channel is not supported; convert it to 8 or 16 bits")
    lab = meaning in (_CIELAB, _ICCLAB)
    whole = page.sampleformat in (_UNSIGNED, 4) or (lab and page.sampleformat == 2)
    if not (whole and bits <= 16) and page.sampleformat != _FLOAT:
        raise DataError(f"a TIFF file of {page.dtype}; convert it to 8 or 16 bits without a sign")
    if meaning == _YCBCR and int(page.compression) not in _JPEG:
        return _ycbcr(tiff), None
    samples = np.asarray(page.asarray())
    if page.axes.startswith("S"):
        samples = np.moveaxis(samples, 0, -1)  # planes
    samples = samples.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    count = _CHANNELS[meaning]
    if samples.shape[2] < count:
        raise DataError(f"a TIFF file of {_name_of(page)} with {samples.shape[2]} channels is damaged")
    alpha = _alpha_index(page, samples.shape[2] - count, notes)
    if alpha is None:
        return samples[..., :count], None
    plane = samples[..., count + alpha]
    coverage = (
        np.rint(np.nan_to_num(plane.astype(np.float64)).clip(0, 1) * 65535).astype(np.uint16)
        if page.sampleformat == _FLOAT
        else _scaled(plane, bits)
    )
    return samples[..., :count], (coverage, page.extrasamples[alpha] == _ASSOCIATED)


def _alpha_index(page: Any, extra: int, notes: list[str]) -> int | None:
    """Which of the extra channels is alpha, by the tag; what is none is left out, and said."""
    kinds = [int(kind) for kind in page.extrasamples[:extra]]
    alpha = next((index for index, kind in enumerate(kinds) if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
    left_out = extra - (alpha is not None)
    if left_out:
        notes.append(
            f"{left_out} extra channel{'s' if left_out > 1 else ''} that the file does not call transparency "
            f"{'are' if left_out > 1 else 'is'} left out"
        )
    return alpha


def _colours(samples: Array, page: Any, floats: Floats | None, notes: list[str]) -> tuple[Array, bytes | None]:
    """Samples (H, W, C) as uint8 or uint16, (H, W) grey or (H, W, 3) RGB, and the profile that then holds."""
    meaning = int(page.photometric)
    icc = page.tags.valueof(_ICC)
    icc = bytes(icc) if icc else _stated_profile(page)
    if meaning in (_CIELAB, _ICCLAB):
        rgb = lab_to_srgb(_lab(samples, meaning, page.bitspersample))
        return (rgb if page.bitspersample > 8 else ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)), None
    if page.sampleformat == _FLOAT:
        if floats is None:
            raise DataError(f"a TIFF file of {page.dtype}; convert it to 8 or 16 bits")
        pixels = floats(samples)
    elif meaning == _PALETTE:
        return _from_palette(samples[..., 0], page.colormap), icc
    else:
        bits = 8 if samples.dtype == np.uint8 and meaning == _YCBCR else page.bitspersample
        pixels = _scaled(samples, bits)
    if meaning == _WHITE_IS_ZERO:
        pixels = np.iinfo(pixels.dtype).max - pixels
    if meaning == _CMYK:
        return _from_cmyk(pixels, icc, notes), None
    if icc is not None and channels_of(icc) != pixels.shape[2]:
        notes.append(f"its colour profile is for {space_of(icc).decode('latin-1').strip()!r} and is left out")
        icc = None
    return (pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)), icc


def _scaled(samples: Array, bits: int) -> Array:
    """Samples of 1 to 16 bits, white at 2^bits - 1, as uint8 (up to 8 bits) or uint16."""
    largest, white = 2**bits - 1, 255 if bits <= 8 else 65535
    kind = np.uint8 if bits <= 8 else np.uint16
    if largest == white:
        return np.ascontiguousarray(samples).view(kind) if samples.dtype.itemsize == kind().itemsize else samples
    levels = np.rint(np.arange(largest + 1) * (white / largest)).astype(kind)
    return np.asarray(levels[np.minimum(samples.astype(np.uint16), largest)])


def _from_palette(indices: Array, colours: Any) -> Array:
    """(H, W) indices through a colour map, uint16 (3, entries), as RGB of 8 bits."""
    table = np.asarray(colours)
    table = table if table.max() < 256 else table >> 8  # some programs wrote 8 bits into the 16
    return np.ascontiguousarray(table.astype(np.uint8).T[np.minimum(indices, table.shape[1] - 1)])


def _from_cmyk(pixels: Array, icc: bytes | None, notes: list[str]) -> Array:
    if icc is not None:
        try:
            return to_srgb(pixels, icc)
        except ValueError as error:
            notes.append(f"its CMYK profile cannot be used ({error})")
    notes.append("CMYK without a profile: its colours are computed by the plain formula")
    return cmyk_to_rgb(pixels)


def _lab(samples: Array, meaning: int, bits: int) -> Array:
    """L*a*b* in its own units, float32 (H, W, 3).

    CIELab: a and b are signed; ICCLab: they are offset by 128, and 16 bits are as in version 2 of ICC.
    """
    lightness = _scaled(samples[..., :1].view(np.dtype(f"u{samples.dtype.itemsize}")), bits).astype(np.float32)
    step = 2.0 ** (bits - 8)
    if meaning == _CIELAB:
        opponents = samples[..., 1:].view(np.dtype(f"i{samples.dtype.itemsize}")).astype(np.float32) / step
        lightness *= 100 / (2.0**bits - 1)
    else:
        opponents = samples[..., 1:].astype(np.float32) / step - 128
        lightness *= 100 / (255 if bits == 8 else 0xFF00)
    return np.concatenate([lightness, opponents], axis=-1)


def _ycbcr(tiff: tifffile.TiffFile) -> Array:
    """YCbCr that is not JPEG, by libtiff (in OpenCV), which knows subsampling, coefficients and reference levels."""
    tiff.filehandle.seek(0)
    content = np.frombuffer(tiff.filehandle.read(), np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or len(tiff.pages) > 1:
        raise DataError("a TIFF file of YCbCr that cannot be decoded; convert it to RGB")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _with_alpha(pixels: Array, alpha: Array, multiplied: bool) -> Array:
    """Colours, (H, W) or (H, W, 3), and alpha (H, W), which is 16 bits where the colours come from floats."""
    white = np.iinfo(pixels.dtype).max
    if alpha.dtype != pixels.dtype:
        alpha = alpha.astype(np.uint16) * 257 if white == 65535 else (alpha >> 8).astype(np.uint8)
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    if multiplied:
        straight = np.rint(planes * (float(white) / np.maximum(alpha, 1)[..., None]))
        planes = np.minimum(straight, white).astype(pixels.dtype)
    return np.concatenate([planes, alpha[..., None]], axis=2)


def _stated_profile(page: Any) -> bytes | None:
    """A profile that says what the tags WhitePoint, PrimaryChromaticities and TransferFunction say; None without."""
    white, primaries = (page.tags.valueof(tag) for tag in (_WHITE_POINT, _PRIMARIES))
    transfer = page.tags.valueof(_TRANSFER)
    if not white or not primaries or len(white) != 4 or len(primaries) != 12:
        return None
    x, y, *corners = (numerator / max(denominator, 1) for numerator, denominator in _pairs((*white, *primaries)))
    curve: Array | float = 2.2  # TIFF's default
    if transfer is not None:
        table = np.asarray(transfer, np.float64).reshape(-1, 2**page.bitspersample)[0] / 65535
        curve = np.interp(np.linspace(0, 1, 1024), np.linspace(0, 1, len(table)), table)
    return make_profile(curve, (x, y), tuple(corners), grey=_CHANNELS.get(int(page.photometric)) == 1)


def _pairs(values: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _name_of(page: Any) -> str:
    return getattr(page.photometric, "name", str(page.photometric))
