"""Read and write images in RGB order.

Images are read upright: the EXIF orientation is applied, as in BasicSR. Damaged files are refused. Files are written
completely or not at all.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from safmn.errors import DataError, first_line
from safmn.imaging.boxes import av1_depth, jpeg2000_depth
from safmn.imaging.file_names import IMAGE_SUFFIXES
from safmn.imaging.orientation import is_lying, orientation_in, orientation_of, upright
from safmn.imaging.tiff import is_tiff, read_tiff, tiff_layout
from safmn.system.files import write_atomically
from safmn.value_types import Array

_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_UNKNOWN = "cannot be read as an image (its content is of no known image format)"
_JPEG, _PNG = (".jpg", ".jpeg"), (".png",)
PNG_HEADER = 33  # bytes: every PNG file begins with the signature and the IHDR chunk
MAX_PIXELS = 2**28  # the largest image that is read; the decoders use at least 6 bytes per pixel
_WEBP_LOSSLESS = 101  # OpenCV takes any quality above 100 as lossless
_WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the images directly inside a folder, sorted by name. The suffix decides; hidden files are skipped.

    Raises:
        DataError: the folder does not exist, contains no image, or contains an image whose name is not UTF-8.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})")
    return check_names(sorted(found), folder)


def check_names(paths: list[Path], folder: Path) -> list[Path]:
    """Return the paths if their names below the folder are UTF-8, as lists, stores and logs require.

    Raises:
        DataError: a name is not UTF-8. The message names the file.
    """
    for path in paths:
        try:
            str(path.relative_to(folder)).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{str(path)!r}: the name of this file is not UTF-8; rename it") from error
    return paths


def read_rgb(path: str | os.PathLike[str], *, deep: bool = False) -> Array:
    """Read any image upright as uint8 (H, W, 3) RGB. Grey is expanded, alpha dropped.

    Args:
        deep: give uint16 for images of more than 8 bits; without it they are cut to 8 bits, as BasicSR does.

    Raises:
        DataError: the file is missing, too large, truncated or not an image. The message names the file.
    """
    return decode_rgb(_read_bytes(path), str(path), deep=deep)


def read_image(path: str | os.PathLike[str]) -> Array:
    """Read an image upright, otherwise as stored: uint8 or uint16, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises:
        DataError: see :func:`read_rgb`.
    """
    return decode_image(_read_bytes(path), str(path))


def decode_image(data: bytes | memoryview, name: str) -> Array:
    """Decode an image file's bytes as :func:`read_image` does. Error messages use ``name``."""
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
    """Decode an image file's bytes as :func:`read_rgb` does. Error messages use ``name``."""
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
    """Return (height, width) of the upright image, from the file's header without decoding the pixels.

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
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: {_UNKNOWN}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error


def write_image(path: str | os.PathLike[str], image: Array, *, quality: int | None = None) -> None:
    """Write an image in the format of the path's suffix. The file is written completely or not at all.

    Args:
        path: the file to write; missing folders are created.
        image: uint8 (or, for PNG and TIFF, uint16) of shape (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.
        quality: 1..100 for JPEG (default 95) and WebP (default: lossless).

    Raises:
        DataError: the array or the suffix cannot be written.
    """
    path = Path(path)
    write_atomically(path, _encode(image, path, quality), flush=False)


def encode_png(image: Array, *, compression: int = 3) -> bytes:
    """Encode an image, uint8 or uint16 and shaped as for :func:`write_image`, as PNG; ``compression`` is 0 to 9."""
    return _encode(image, Path("image.png"), None, compression)


def with_png_chunks(file: bytes, chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG file with the chunks (type, content) inserted after its header (PNG specification, 11.3)."""
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
    """Refuse truncated PNG, JPEG and WebP files: decoders may silently fill the rest with grey."""
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
        raise DataError(f"{name}: the image file is truncated ({len(data)} bytes); get the file again")


def _check_size(data: bytes | memoryview, name: str) -> None:
    """Refuse an image whose header states a huge size before memory is allocated: the file may be malicious."""
    try:
        width, height = _stated_size(data)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: the image is too large or a decompression bomb ({error})") from error
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: the header states {width}x{height} pixels, more than {MAX_PIXELS / 1e6:.0f} million. "
            "It may be a decompression bomb. If it is not, cut it into smaller images with another program."
        )


def _stated_size(data: bytes | memoryview) -> tuple[int, int]:
    """Return (width, height) from the header of an image file, or (0, 0) if it is unknown.

    Raises:
        PIL.Image.DecompressionBombError: the image is too large for Pillow.
    """
    if bytes(data[:4]) == b"\x89PNG":
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if bytes(data[:2]) == b"\xff\xd8":
        return _jpeg_size(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except (OSError, ValueError, SyntaxError):
        return 0, 0  # only OpenCV may know the format; otherwise the decoder reports the error


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    """Return (width, height) from a JPEG file's first frame header, or (0, 0) if it has none."""
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
    """Return whether the main image has its end-of-image marker; those of a thumbnail or a trailer do not count.

    Segments state their length and are skipped (the EXIF thumbnail is inside one). The data of a scan ends at the next
    marker: another segment (progressive files have many scans) or the end of the image. Anything after that end (such
    as the film of a motion photo) is ignored.
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
    """Return the position of the next marker that is not scan data (stuffed bytes, restarts); -1 if there is none."""
    while (place := data.find(b"\xff", place)) >= 0:
        following = data[place + 1 : place + 2]
        if following and following[0] not in (0x00, *range(0xD0, 0xD8)):
            return place
        place += 2
    return -1


def _opencv_decode(data: bytes | memoryview, flags: int) -> Array | None:
    """Decode with OpenCV, the fastest for PNG, JPEG and WebP; return ``None`` if it cannot read the file."""
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
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_UNKNOWN}") from error
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
