"""Read the metadata of image files from the places where each format keeps it."""

from __future__ import annotations

import logging
import mmap
import struct
from pathlib import Path
from typing import Any

import tifffile
from PIL import Image

from safmn.errors import first_line
from safmn.imaging.boxes import code_points, jpeg2000_profile
from safmn.imaging.tiff import TiffImage
from safmn.inference.pictures import colours, exif, ifd, png, xmp
from safmn.inference.pictures.picture import Extras
from safmn.inference.pictures.resolution import Resolution

logger = logging.getLogger(__name__)

Described = tuple[bytes | None, bytes | None, Extras]
"""EXIF data (with the orientation), ICC profile, other metadata."""

_IPTC_RESOURCE = 0x0404  # number of the Photoshop image resource with IPTC data
_TIFF_XMP, _TIFF_IPTC = 700, 33723
_CM = 2.54  # centimetres per inch


def metadata(image: Image.Image) -> Described:
    """Return the metadata of an opened file; damaged EXIF data is dropped with a warning."""
    path = Path(image.filename)  # type: ignore[attr-defined]
    icc = image.info.get("icc_profile") or None
    if image.format == "PNG":
        return _of_png(path, icc)
    data = _exif_of(image, path)
    info = image.info
    resolution = _resolution(info) or exif.resolution(data)
    comment = info.get("comment")
    packet = info.get("xmp")
    extras = Extras(
        colours=_code_points(image, path),
        resolution=resolution if resolution and resolution.says_something else None,
        xmp=_packet(packet),
        iptc=_iptc(info),
        comment=comment.encode() if isinstance(comment, str) else comment or None,
    )
    if image.format == "JPEG2000":
        icc = icc or jpeg2000_profile(path.read_bytes())
    return data, icc, extras


def _of_png(path: Path, icc: bytes | None) -> Described:
    chunks = png.read_chunks(path)
    stated = colours.from_png(chunks)
    if icc and stated and not stated.points:
        stated = None  # a profile takes precedence over all but cICP
    texts = [(kind, content) for kind, content in chunks if png.is_text(kind, content)]
    comment = next((png.text_of(*chunk) for chunk in texts if png.keyword(chunk[1]) == b"Comment"), None)
    data = _checked(png.exif_of(chunks), path)
    resolution = png.resolution_of(chunks) or exif.resolution(data)
    extras = Extras(
        colours=stated,
        resolution=resolution if resolution and resolution.says_something else None,
        xmp=_packet(png.xmp_of(chunks)),
        iptc=png.iptc_of(chunks),
        comment=comment or None,
        texts=tuple(chunk for chunk in texts if png.keyword(chunk[1]) != b"Comment"),
    )
    return data, icc, extras


def tiff_metadata(path: Path, image: TiffImage) -> Described:
    """Return the metadata of the page of a TIFF file that was read as ``image``.

    The EXIF data has no orientation, because it is already applied to the pixels.
    """
    with tifffile.TiffFile(path) as tiff:
        if tiff.is_bigtiff:
            logger.warning("%s: BigTIFF: only pixels and profile are kept.", path)
            return None, image.icc, Extras()
        order = tiff.byteorder
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            root = ifd.read_directory(content, image.offset, order)
        data = exif.from_tiff(root, order)
    except (ValueError, struct.error) as error:
        logger.warning("%s: its EXIF data cannot be read (%s) and is dropped.", path, first_line(error))
        return None, image.icc, Extras()
    packet, iptc = (entry.value if (entry := root.get(tag)) else None for tag in (_TIFF_XMP, _TIFF_IPTC))
    resolution = exif.resolution_in(root, order)
    extras = Extras(
        resolution=resolution if resolution and resolution.says_something else None, xmp=_packet(packet), iptc=iptc
    )
    return data, image.icc, extras


def heif_metadata(info: dict[str, Any], path: Path) -> Described:
    """Return the metadata in pillow-heif's ``info``; it has already applied the orientation to the pixels."""
    data = _checked(info.get("exif"), path)
    points = info.get("nclx_profile") or {}
    stated = colours.from_points(points.get("color_primaries", 2), points.get("transfer_characteristics", 2))
    resolution = exif.resolution(data)
    icc = info.get("icc_profile") or None
    extras = Extras(colours=None if icc else stated, resolution=resolution, xmp=_packet(info.get("xmp")))
    return data, icc, extras


def _exif_of(image: Image.Image, path: Path) -> bytes | None:
    """Return a file's EXIF data; for AVIF, with the orientation that the file states outside the data.

    Image.getexif is avoided: if EXIF data has no orientation, it takes it from XMP, unlike other programs. It also
    changes the types of values.
    """
    decoder = getattr(image, "_decoder", None)
    if image.format == "AVIF" and decoder is not None:
        *_, data, orientation, _ = decoder.get_info()
        return exif.with_orientation(_checked(data or None, path), orientation)
    return _checked(image.info.get("exif") or None, path)


def _checked(data: bytes | None, path: Path) -> bytes | None:
    try:
        return exif.checked(data)
    except (ValueError, struct.error) as error:
        logger.warning("%s: its EXIF data cannot be read (%s) and is dropped.", path, first_line(error))
        return None


def _packet(packet: bytes | str | None) -> bytes | None:
    """Return XMP without the descriptions of parts that are not written, such as gain maps and videos."""
    packet = packet.encode() if isinstance(packet, str) else packet
    return xmp.of_one_picture(packet.rstrip(b"\0")) if packet else None


def _resolution(info: dict[Any, Any]) -> Resolution | None:
    """Return the resolution in Pillow's ``info``, from a JFIF or BMP header; None if it states none."""
    if "jfif_density" in info:
        x, y = info["jfif_density"]
        unit = info.get("jfif_unit", 0)
        if not x or not y or (unit == 0 and x == y):
            return None
        return Resolution(x * _CM, y * _CM) if unit == 2 else Resolution(x, y, absolute=unit == 1)
    if "jfif" in info or "dpi" not in info or "exif" in info:  # Pillow sets 72 if EXIF data is damaged
        return None
    x, y = info["dpi"]
    return Resolution(float(x), float(y)) if x and y else None


def _iptc(info: dict[Any, Any]) -> bytes | None:
    resources = info.get("photoshop")
    found = resources.get(_IPTC_RESOURCE) if isinstance(resources, dict) else None
    return bytes(found) if isinstance(found, bytes) and found else None


def _code_points(image: Image.Image, path: Path) -> colours.Colours | None:
    if image.format != "AVIF" or image.info.get("icc_profile"):
        return None
    points = code_points(path.read_bytes())
    return colours.from_points(*points) if points else None
