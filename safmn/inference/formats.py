"""Image files of people: every common format and mode in, the same out, with their colour profile and orientation.

Pillow reads and writes what has 8 bits, OpenCV reads what has 16 (Pillow would cut it to 8).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from safmn.errors import DataError, UserError
from safmn.files import atomic_path
from safmn.imaging.io import with_png_chunks

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]

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
MAX_PIXELS = 2**28
"""Images with more pixels (268 million) are refused unless a larger limit is given."""

_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}
_GIF_TRANSPARENT = 255  # the last of the palette
_SOFT = 9  # pixels; wider than the edge that upscaling makes of a hard one
_DEEP = ("PNG", "TIFF")  # formats that hold 16 bits
_WITH_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF", "GIF")
_WITH_GREY_ALPHA = ("PNG", "TIFF")
_WITH_ORIENTATION = ("PNG", "JPEG", "WEBP", "AVIF")
# Tags PhotometricInterpretation, PlanarConfiguration, ExtraSamples
_TIFF_MEANING, _TIFF_PLANES, _TIFF_EXTRA = 262, 284, 338
_PROFILE_SPACES = {b"RGB ": (3, 4), b"GRAY": (1, 2)}
_EXIF_IFDS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_TIFF_TEXTS = (
    *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software),
    *(ExifTags.Base.DateTime, ExifTags.Base.Artist, ExifTags.Base.Copyright),
)
# How descriptions begin in which programs keep the shape of the file, which is another now.
_OF_THE_FILE = ("ImageJ=", '{"shape"', "<?xml", "<OME")
# What describes a picture, of all that a TIFF file keeps in the same place as EXIF does.
_DESCRIPTIVE = (*_TIFF_TEXTS, ExifTags.Base.Orientation, *_EXIF_IFDS)


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
        exif = _load_exif(self.exif)
        turn = _TURNS.get(exif.pop(ExifTags.Base.Orientation, 1))
        if turn is None:
            return self
        return replace(self, pixels=np.ascontiguousarray(turn(self.pixels)), exif=exif.tobytes())


_TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


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
        raise DataError(f"{path}: cannot be read ({_first_line(error)})") from error
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
            exif = _without_orientation(exif)  # it is applied to the pixels when they are decoded
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
        raise DataError(f"{path}: {part} cannot be decoded ({_first_line(error)})") from error


def _unknown_kind(path: Path) -> str:
    """What is to be said of a file that Pillow does not know, such as TIFF with unusual pixels."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            kind = f"TIFF with {page.samplesperpixel} channels of {page.dtype}"
    except Exception:  # as above; most often it is no TIFF file
        return "it is not an image of a known kind"
    return f"{kind} is not supported; convert it to grey, RGB or RGBA with 8 or 16 bits"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
        turn = _TURNS.get(page.tags.valueof(ExifTags.Base.Orientation, 1))
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
            logger.warning("A CMYK profile cannot be used (%s): converting without it.", _first_line(error))
    return image.convert("RGB")


def metadata(image: Image.Image) -> tuple[bytes | None, bytes | None]:
    """EXIF data and colour profile of an opened file; damaged EXIF data is dropped, with a warning."""
    icc = image.info.get("icc_profile") or None
    try:
        exif = image.getexif()
        if not exif:
            return None, icc
        kept = _load_exif(exif.tobytes())
        for tag in [tag for tag in kept if image.format == "TIFF" and tag not in _DESCRIPTIVE]:
            del kept[tag]
        return (kept.tobytes() if kept else None), icc
    except Exception as error:  # the parser trusts offsets and types that a damaged block states
        logger.warning("%s: its EXIF data cannot be read (%s) and is dropped.", image.filename, _first_line(error))  # type: ignore[attr-defined]
        return None, icc


def _without_orientation(data: bytes | None) -> bytes | None:
    exif = _load_exif(data)
    exif.pop(ExifTags.Base.Orientation, None)
    return exif.tobytes() if exif else None


def _load_exif(data: bytes | None) -> Image.Exif:
    exif = Image.Exif()
    if data:
        exif.load(data)
    return exif


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
        raise DataError(f"{path}: cannot be written as {kind} ({_first_line(error)}); choose another format") from error


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
        options["exif"] = _sized_exif(picture)
    return options


def _fitted(picture: Picture, kind: str, path: Path) -> Picture:
    """The picture with the bits, channels and profile that a format can hold."""
    pixels = picture.pixels
    if pixels.dtype == np.uint16 and kind not in _DEEP:
        logger.warning("%s: %s holds 8 bits; the image had 16.", path, kind)
        pixels = _eight_bits(pixels)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels in (2, 4) and kind not in _WITH_ALPHA:
        logger.warning("%s: %s holds no transparency; the image is laid onto white.", path, kind)
        pixels = _onto_white(pixels)
    elif channels == 2 and (kind not in _WITH_GREY_ALPHA or pixels.dtype == np.uint16):
        pixels = pixels[..., [0, 0, 0, 1]]
    if kind == "GIF" and pixels.ndim == 3 and pixels.shape[2] == 4 and _is_soft(pixels[..., 3]):
        logger.warning("%s: a pixel of a GIF is shown or not; the image is half transparent in places.", path)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 1 and pixels.ndim == 3:
        pixels = pixels[..., 0]
    space = picture.icc[16:20] if picture.icc else b""
    icc = picture.icc if channels in _PROFILE_SPACES.get(space, ()) else None
    return replace(picture, pixels=np.ascontiguousarray(pixels), icc=icc)


def _is_soft(alpha: Array) -> bool:
    """Whether there is more between 0 and full than the edges of an image that was cut out and enlarged."""
    partial = (alpha > 0) & (alpha < 255)
    return bool(cv2.erode(partial.astype(np.uint8), np.ones((_SOFT, _SOFT), np.uint8)).any())


def _eight_bits(pixels: Array) -> Array:
    return np.asarray((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def to_rgb8(pixels: Array) -> Array:
    """Any pixels of a :class:`Picture` as uint8 (H, W, 3): 16 bits rounded, alpha onto white, grey repeated."""
    pixels = _eight_bits(pixels) if pixels.dtype == np.uint16 else pixels
    pixels = _onto_white(pixels) if pixels.ndim == 3 and pixels.shape[2] in (2, 4) else pixels
    return np.ascontiguousarray(np.repeat(pixels[..., None], 3, axis=2)) if pixels.ndim == 2 else pixels


def _onto_white(pixels: Array) -> Array:
    """(H, W, 2 or 4) with straight alpha onto white: (H, W) or (H, W, 3)."""
    alpha = pixels[..., -1:].astype(np.float32) / np.iinfo(pixels.dtype).max
    white = np.iinfo(pixels.dtype).max
    flat = np.rint(pixels[..., :-1] * alpha + white * (1 - alpha)).astype(pixels.dtype)
    return flat[..., 0] if flat.shape[2] == 1 else flat


def _sized_exif(picture: Picture) -> bytes:
    """The EXIF data, with the picture's size where it states one and without the thumbnail of the old one."""
    exif = _load_exif(picture.exif)
    details = exif.get_ifd(ExifTags.IFD.Exif)
    height, width = picture.pixels.shape[:2]
    for tag, value in ((ExifTags.Base.ExifImageWidth, width), (ExifTags.Base.ExifImageHeight, height)):
        if tag in details:
            details[tag] = value
    return exif.tobytes()


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
        chunks.append((b"eXIf", _sized_exif(picture).removeprefix(b"Exif\0\0")))
    path.write_bytes(with_png_chunks(encoded.tobytes(), chunks))


def _write_tiff(path: Path, picture: Picture) -> None:
    """Pillow cannot put EXIF data into a compressed file; of it, the tags that TIFF itself has are kept."""
    pixels = picture.pixels
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    exif = _load_exif(picture.exif)
    tags: list[tuple[int, str, int, int | str, bool]] = []
    for tag in _TIFF_TEXTS:
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
