"""Write TIFF with EXIF data, XMP, IPTC data and resolution."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import tifffile

from safmn.inference.pictures import exif as exif_data
from safmn.inference.pictures import ifd
from safmn.inference.pictures.ifd import Directory
from safmn.inference.pictures.picture import Picture

_XMP, _IPTC, _DESCRIPTION = 700, 33723, 270
_UNDEFINED, _BYTE, _ASCII = 7, 1, 2
# Starts of descriptions in which programs store the old file's shape.
_OF_THE_FILE = (b"ImageJ=", b'{"shape"', b"<?xml", b"<OME")
_LARGEST_CLASSIC = 2**32 - 2**25  # bytes; tifffile writes larger files as BigTIFF, which has another directory format

Tag = tuple[int, int, int, Any, bool]


def write_tiff(path: Path, picture: Picture) -> None:
    """Write a picture that :func:`safmn.inference.pictures.fitting.fitted` has fitted to TIFF."""
    pixels, extras = picture.pixels, picture.extras
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    below: dict[int, Directory] = {}
    tags = _texts(picture, below)
    if extras.xmp:
        tags.append((_XMP, _BYTE, len(extras.xmp), extras.xmp, True))
    if extras.iptc:
        tags.append((_IPTC, _UNDEFINED, len(extras.iptc), extras.iptc, True))
    below = below if pixels.nbytes < _LARGEST_CLASSIC else {}
    resolution = extras.resolution
    shape: dict[str, Any] = (
        {}
        if resolution is None
        else {
            "resolution": (exif_data.rational(resolution.x), exif_data.rational(resolution.y)),
            "resolutionunit": "INCH" if resolution.absolute else "NONE",
        }
    )
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
        byteorder="<",
        **shape,
    )
    if below:
        _append(path, below)


def _texts(picture: Picture, below: dict[int, Directory]) -> list[Tag]:
    """Return the texts in EXIF data and the comment as TIFF tags; put the EXIF and GPS directories into ``below``."""
    tags: list[Tag] = []
    if picture.exif:
        block = exif_data.block_of(picture.exif)
        order = ifd.byte_order(block)
        root = ifd.reordered(ifd.first_directory(block), order, "<")
        below.update({tag: root.below[tag] for tag in (ifd.EXIF, ifd.GPS) if tag in root.below})
        for entry in root.entries:
            if entry.tag in exif_data.TEXTS and entry.kind == _ASCII and not entry.value.startswith(_OF_THE_FILE):
                tags.append((entry.tag, _ASCII, entry.count, entry.value, True))
    comment = picture.extras.comment
    if comment and not any(tag[0] == _DESCRIPTION for tag in tags):
        tags.append((_DESCRIPTION, _ASCII, len(comment) + 1, comment + b"\0", True))
    return tags


def _append(path: Path, below: dict[int, Directory]) -> None:
    """Append directories, and a new first directory that points to them, to a little-endian TIFF file of one page."""
    with path.open("r+b") as file:
        file.seek(4)
        file.seek(struct.unpack("<I", file.read(4))[0])
        (count,) = struct.unpack("<H", file.read(2))
        lines = [file.read(12) for _ in range(count)]
        for tag, directory in below.items():
            place = _even_end(file)
            file.write(ifd.written(directory, "<", place))
            lines.append(struct.pack("<HHII", tag, ifd.LONG, 1, place))
        place = _even_end(file)
        ordered = sorted(lines, key=lambda line: struct.unpack_from("<H", line)[0])
        file.write(struct.pack("<H", len(ordered)) + b"".join(ordered) + bytes(4))
        file.seek(4)
        file.write(struct.pack("<I", place))


def _even_end(file: BinaryIO) -> int:
    """Go to the end of a file, pad it to an even size as offsets of directories require, and return that offset."""
    end = file.seek(0, 2)
    return end + file.write(b"\0" * (end % 2))
