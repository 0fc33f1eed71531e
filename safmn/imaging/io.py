"""Read and write images: RGB order, upright (EXIF's orientation is applied, as BasicSR does), whole or not at all."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from safmn.errors import DataError, first_line
from safmn.imaging.boxes import av1_depth, jpeg2000_depth
from safmn.imaging.file_names import IMAGE_SUFFIXES
from safmn.imaging.orientation import is_lying, orientation_in, orientation_of, upright
from safmn.imaging.tiff import is_tiff, read_tiff, tiff_layout
from safmn.system.files import write_atomically

Array = np.ndarray[Any, np.dtype[Any]]

_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG, _PNG = (".jpg", ".jpeg"), (".png",)
PNG_HEADER = 33  # bytes of the signature and the chunk IHDR, which every PNG file begins with
MAX_PIXELS = 2**28  # of an image that is read here; the decoders take 6 bytes for each and more
_WEBP_LOSSLESS = 101  # any quality above 100 means lossless to OpenCV
_WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The images directly inside a folder (by suffix; hidden files left out), sorted by name.

    Raises:
        DataError: there is no such folder, no image in it, or one whose name is not UTF-8.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})")
    return check_names(sorted(found), folder)


def check_names(paths: list[Path], folder: Path) -> list[Path]:
    """The paths, if their names in the folder are text: lists, stores and logs are written in UTF-8.

    Raises:
        DataError: one is not; names it.
    """
    for path in paths:
        try:
            str(path.relative_to(folder)).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{str(path)!r}: its name is not UTF-8; rename it") from error
    return paths


def read_rgb(path: str | os.PathLike[str], *, deep: bool = False) -> Array:
    """Read any image as uint8 (H, W, 3) RGB: grey is expanded, alpha dropped, upright.

    Args:
        deep: more than 8 bits become uint16; without it they are cut to 8, as BasicSR does.

    Raises:
        DataError: the file is missing, not an image, or ends too early; names it.
    """
    return decode_rgb(_read_bytes(path), str(path), deep=deep)


def read_image(path: str | os.PathLike[str]) -> Array:
    """Read an image upright, else as stored: uint8 or uint16, (H, W) grey or (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises:
        DataError: as :func:`read_rgb`.
    """
    name, data = str(path), _read_bytes(path)
    _check_complete(data, name)
    _check_size(data, name)
    image = _special(data, name)
    if image is not None:
        return image[..., 0] if image.ndim == 3 and image.shape[2] == 2 else image  # grey and alpha: no alpha
    image = _opencv_decode(data, cv2.IMREAD_UNCHANGED)
    if image is None:
        return _pillow_decode(data, name, colour=False)
    image = _widened_map(data, image)
    if image.ndim == 3 and image.shape[2] >= 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return upright(np.asarray(image), _orientation(data, name))


def decode_rgb(data: bytes | memoryview, name: str, *, deep: bool = False) -> Array:
    """Decode an image file's bytes as :func:`read_rgb` does; ``name`` stands in the error message."""
    _check_complete(data, name)
    _check_size(data, name)
    image = _special(data, name)
    if image is None:
        image = _opencv_decode(data, _COLOUR)
        if image is None:
            return _pillow_decode(data, name, colour=True)
        image = cv2.cvtColor(_widened_map(data, image), cv2.COLOR_BGR2RGB)
        image = upright(np.asarray(image), _orientation(data, name))
    elif image.ndim == 2 or image.shape[2] == 2:
        image = np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    image = image[..., :3]
    return np.ascontiguousarray(image if deep or image.dtype == np.uint8 else (image >> 8).astype(np.uint8))


def widened(pixels: Array, white: int) -> Array:
    """Pixels of more than 8 bits whose white has this value, as uint16 with white at 65535."""
    if white == 65535:
        return pixels
    return ((np.minimum(pixels, white).astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)


def decode_deep(data: bytes | memoryview) -> Array | None:
    """The pixels of an AVIF or JPEG 2000 file with more than 8 bits, as stored: uint16 (H, W) or (H, W, C), scaled.

    Of an animation the first frame. None for files of 8 bits and of other kinds, which libraries read as they are.
    """
    head = bytes(data[:12])
    if head[4:8] == b"ftyp":
        depth = av1_depth(data)
        pixels = np.asarray(imagecodecs.avif_decode(bytes(data), 0)) if depth > 8 else None
    elif head[4:8] == b"jP  " or head[:4] == b"\xff\x4f\xff\x51":
        depth = jpeg2000_depth(data)
        pixels = np.asarray(imagecodecs.jpeg2k_decode(bytes(data))) if depth > 8 else None
    else:
        return None
    if pixels is None:
        return None
    return widened(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels, 2**depth - 1)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of the upright image from the file's header, without decoding the pixels.

    Raises:
        DataError: the file is missing or not an image.
    """
    try:
        with open(path, "rb") as file:
            if is_tiff(file.read(4)):
                file.seek(0)
                return tiff_layout(file)[:2]
        with Image.open(path) as image:
            lying = is_lying(orientation_of(image))
            return (image.width, image.height) if lying else (image.height, image.width)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error


def write_image(path: str | os.PathLike[str], image: Array, *, quality: int | None = None) -> None:
    """Write an image in the format of the path's suffix, so that the file is there whole or not at all.

    Args:
        path: where to; missing folders are made.
        image: uint8 (or, for PNG and TIFF, uint16) of shape (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.
        quality: 1..100 for JPEG (default 95) and WebP (default: lossless).

    Raises:
        DataError: the array or the suffix is not one that can be written.
    """
    path = Path(path)
    write_atomically(path, _encode(image, path, quality), flush=False)


def encode_png(image: Array, *, compression: int = 3) -> bytes:
    """The PNG file of an image, uint8 or uint16, shaped as for :func:`write_image`; ``compression`` is 0 to 9."""
    return _encode(image, Path("image.png"), None, compression)


def with_png_chunks(file: bytes, chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG file with more chunks, of (type, content) each, behind its header (PNG specification, 11.3)."""
    added = b"".join(map(_png_chunk, *zip(*chunks, strict=True))) if chunks else b""
    return file[:PNG_HEADER] + added + file[PNG_HEADER:]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _check_complete(data: bytes | memoryview, name: str) -> None:
    """Refuse PNG, JPEG and WebP files that end too early: decoders may fill the rest with grey and say nothing."""
    data = bytes(data)
    if not data:
        raise DataError(f"{name}: the file is empty")
    if data.startswith(b"\x89PNG"):
        complete = data.rfind(b"IEND") > 0
    elif data.startswith(b"\xff\xd8"):
        complete = _is_whole_jpeg(data)
    elif data.startswith(b"RIFF"):
        complete = len(data) >= int.from_bytes(data[4:8], "little") + 8
    else:
        return
    if not complete:
        raise DataError(f"{name}: the image file is damaged: it ends too early ({len(data)} bytes). Get it again.")


def _check_size(data: bytes | memoryview, name: str) -> None:
    """Refuse an image that says that it is huge, before memory is taken for it: it may be made to exhaust that."""
    try:
        width, height = _stated_size(data)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: too large, or a decompression bomb ({error})") from error
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: says that it has {width}x{height} pixels, more than {MAX_PIXELS / 1e6:.0f} million: a "
            "decompression bomb? If not, cut it into smaller images with another program."
        )


def _stated_size(data: bytes | memoryview) -> tuple[int, int]:
    """(width, height) that the header of an image file states; (0, 0) where that is not known.

    Raises:
        PIL.Image.DecompressionBombError: Pillow finds it too large.
    """
    if bytes(data[:4]) == b"\x89PNG":
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if bytes(data[:2]) == b"\xff\xd8":
        return _jpeg_size(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except (OSError, ValueError, SyntaxError):
        return 0, 0  # a format of OpenCV's; or none, which the decoder will say


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    """(width, height) in a JPEG file's first frame header; (0, 0) where it has none."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        has_length = marker not in (0x01, 0xFF) and not 0xD0 <= marker <= 0xD8
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big") if has_length else 1 + (marker != 0xFF)
    return 0, 0


def _is_whole_jpeg(data: bytes) -> bool:
    """Whether the end-of-image marker is there, of the image itself: not its EXIF thumbnail's, nor that of a trailer.

    Segments have a length, and are passed over (the thumbnail lies in one). Behind a start of scan, the next marker is
    that of another segment (progressive files have many scans) or the end; what follows the end (a motion photo's film)
    is not looked at.
    """
    place = 2
    while 0 <= place < len(data) - 1:
        marker = data[place + 1]
        if data[place] != 0xFF:
            return False
        if marker == 0xD9:
            return True
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # these have no length
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDA:
            place = _end_of_scan(data, place)
    return False


def _end_of_scan(data: bytes, place: int) -> int:
    """Where the next marker stands that is no part of a scan's data (stuffed bytes, restarts); -1 where none does."""
    while (place := data.find(b"\xff", place)) >= 0:
        following = data[place + 1 : place + 2]
        if following and following[0] not in (0x00, *range(0xD0, 0xD8)):
            return place
        place += 2
    return -1


def _opencv_decode(data: bytes | memoryview, flags: int) -> Array | None:
    """OpenCV's decoders are the fastest for PNG, JPEG and WebP; ``None`` where they cannot read the file."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _special(data: bytes | memoryview, name: str) -> Array | None:
    """The upright pixels of a kind of file that OpenCV and Pillow mistake: TIFF, AVIF and JPEG 2000 of many bits."""
    if is_tiff(bytes(data[:4])):
        try:
            return read_tiff(io.BytesIO(data)).pixels
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    try:
        pixels = decode_deep(data)
    except Exception as error:  # decoders raise whatever a damaged file leads to
        raise DataError(f"{name}: cannot be read as an image ({first_line(error)})") from error
    return None if pixels is None else upright(pixels, _orientation(data, name))


def _widened_map(data: bytes | memoryview, image: Array) -> Array:
    """Pixels of a portable map whose white is not 65535: OpenCV does not scale them."""
    if image.dtype != np.uint16 or bytes(data[:2]) not in (b"P2", b"P3", b"P5", b"P6"):
        return image
    with Image.open(io.BytesIO(data)) as opened:
        arguments = opened.tile[0][3]
    white = int(arguments[1]) if isinstance(arguments, tuple) and isinstance(arguments[1], int) else 0
    return widened(image, white) if 255 < white < 65535 else image


def _orientation(data: bytes | memoryview, name: str) -> int:
    try:
        return orientation_in(data)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {error}; cut it into pieces first") from error


def _pillow_decode(data: bytes | memoryview, name: str, *, colour: bool) -> Array:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if colour or image.mode not in ("L", "RGB", "RGBA", "I;16"):
                image = image.convert("RGB")
            return upright(np.array(image), orientation_in(data))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot be read as an image ({error})") from error


def _encode(image: Array, path: Path, quality: int | None, compression: int = 3) -> bytes:
    suffix = path.suffix.lower()
    if suffix not in _WRITABLE:
        raise DataError(f"{path}: cannot write images with the suffix {suffix!r}; use one of {', '.join(_WRITABLE)}")
    deep = image.dtype == np.uint16 and suffix in (".png", ".tif", ".tiff")
    channels = 1 if image.ndim == 2 else image.shape[-1]
    if not (image.dtype == np.uint8 or deep) or image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.size:
        raise DataError(f"{path}: cannot write a {image.dtype} array of shape {image.shape} as {suffix}")
    parameters = []
    if suffix in _JPEG:
        parameters = [cv2.IMWRITE_JPEG_QUALITY, 95 if quality is None else quality]
    elif suffix == ".webp":
        parameters = [cv2.IMWRITE_WEBP_QUALITY, _WEBP_LOSSLESS if quality is None else quality]
    elif suffix in _PNG:
        parameters = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    if channels > 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA)
    try:
        done, data = cv2.imencode(suffix, image, parameters)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be written as {suffix} ({error.err})") from error
    if not done:
        raise DataError(f"{path}: cannot be written as {suffix}")
    return data.tobytes()
