"""EXIF data: kept byte for byte, but for what has to change with the pixels.

The block's offsets stay: what cameras put in (their notes hold offsets of their own) stays readable.
"""

from __future__ import annotations

import struct

from safmn.inference.pictures import ifd
from safmn.inference.pictures.ifd import LONG, RATIONAL, SHORT, Directory, Entry
from safmn.inference.pictures.resolution import Resolution

PREFIX = b"Exif\0\0"  # before the block, in JPEG
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, UNIT = 274, 282, 283, 296
TEXTS = (270, 271, 272, 305, 306, 315, 33432)
"""ImageDescription, Make, Model, Software, DateTime, Artist, Copyright."""
_DESCRIPTIVE = (*TEXTS, X_RESOLUTION, Y_RESOLUTION, UNIT)
_SIZES = ((ifd.EXIF, 40962, 40963), (None, 256, 257))  # (directory, tag of the width, of the height)
_THUMBNAIL_AT, _THUMBNAIL_BYTES = 513, 514
_INDEX = 1  # of the interoperability directory
_INCH, _CM = 2, 3
_FINEST = 1000  # denominator of resolutions that are no whole numbers


def block_of(data: bytes) -> bytes:
    """EXIF data without the prefix that some formats put before it."""
    return data.removeprefix(PREFIX)


def orientation(data: bytes | None) -> int:
    """The orientation that EXIF data states, 1 to 8; 1 where it states none."""
    try:
        block = block_of(data or b"")
        value = ifd.number(ifd.first_directory(block).get(ORIENTATION), ifd.byte_order(block))
    except (ValueError, struct.error):
        return 1
    return int(value) if value is not None and 1 <= value <= 8 else 1


def checked(data: bytes | None) -> bytes | None:
    """The data, without prefix, or None where it holds nothing.

    Raises:
        ValueError, struct.error: it is damaged.
    """
    block = block_of(data or b"")
    return block if block and ifd.first_directory(block).entries else None


def is_adobe_rgb(data: bytes | None) -> bool:
    """Whether EXIF data says that the colours are Adobe RGB (DCF's option file: interoperability index R03)."""
    try:
        details = ifd.first_directory(block_of(data or b"")).below.get(ifd.EXIF)
    except (ValueError, struct.error):
        return False
    rules = details.below.get(ifd.INTEROPERABILITY) if details else None
    index = rules.get(_INDEX) if rules else None
    return index is not None and index.value.startswith(b"R03")


def resolution(data: bytes | None) -> Resolution | None:
    """The resolution that EXIF data states."""
    if not data:
        return None
    try:
        block = block_of(data)
        return resolution_in(ifd.first_directory(block), ifd.byte_order(block))
    except (ValueError, struct.error):
        return None


def resolution_in(root: Directory, order: str) -> Resolution | None:
    """The resolution that a directory states."""
    x, y, unit = (ifd.number(root.get(tag), order) for tag in (X_RESOLUTION, Y_RESOLUTION, UNIT))
    if not x or not y:
        return None
    scale = 2.54 if unit == _CM else 1.0
    return Resolution(x * scale, y * scale, absolute=unit != 1)


def fitted(
    data: bytes,
    size: tuple[int, int],
    *,
    resolution: Resolution | None = None,
    turned: bool = False,
    bare: bool = False,
) -> bytes:
    """EXIF data for pixels of this size: its sizes and resolution changed in place, the old thumbnail taken out.

    Args:
        data: with or without prefix.
        size: (width, height) in pixels.
        resolution: the new one; written only where there was one.
        turned: the orientation was applied to the pixels.
        bare: without the orientation.

    Returns:
        Without prefix. Data that is damaged comes back as it was.
    """
    block = bytearray(block_of(data))
    try:
        order = ifd.byte_order(block)
        root = ifd.first_directory(bytes(block))
        _drop_thumbnail(block, root, order)
        for place, *tags in _SIZES:
            directory = root if place is None else root.below.get(place)
            for tag, side in zip(tags, size, strict=True):
                _set_number(block, directory.get(tag) if directory else None, side, order)
        if resolution is not None:
            _set_resolution(block, root, resolution, order)
        if turned or bare:
            _set_number(block, root.get(ORIENTATION), 1, order)
        if bare:
            _remove(block, root, ORIENTATION, order)
    except (ValueError, struct.error):
        return block_of(data)
    return bytes(block)


def _set_number(block: bytearray, entry: Entry | None, value: int, order: str) -> None:
    """One number, in the line itself; a SHORT that is too small for it becomes a LONG."""
    if entry is None or entry.count != 1 or entry.kind not in (SHORT, LONG):
        return
    kind = LONG if value > 0xFFFF else entry.kind
    struct.pack_into(order + "H", block, entry.place + 2, kind)
    block[entry.place + 8 : entry.place + 12] = ifd.packed([value], kind, order).ljust(4, b"\0")


def _set_resolution(block: bytearray, root: Directory, resolution: Resolution, order: str) -> None:
    in_cm = ifd.number(root.get(UNIT), order) == _CM
    for tag, value in ((X_RESOLUTION, resolution.x), (Y_RESOLUTION, resolution.y)):
        entry = root.get(tag)
        if entry is not None and entry.kind == RATIONAL and entry.count == 1:
            (start,) = struct.unpack_from(order + "I", block, entry.place + 8)
            block[start : start + 8] = ifd.packed(rational(value / 2.54 if in_cm else value), RATIONAL, order)


def rational(value: float) -> tuple[int, int]:
    """A positive number as numerator and denominator."""
    return (round(value), 1) if abs(value - round(value)) < 0.5 / _FINEST else (round(value * _FINEST), _FINEST)


def _drop_thumbnail(block: bytearray, root: Directory, order: str) -> None:
    """The directory of the thumbnail is not pointed to any more, and its pixels are blanked."""
    if not root.next:
        return
    try:
        small = ifd.read_directory(bytes(block), root.next, order)
        start, length = (ifd.number(small.get(tag), order) for tag in (_THUMBNAIL_AT, _THUMBNAIL_BYTES))
    except struct.error:
        start = length = None
    if start and length and start + length <= len(block):
        block[int(start) : int(start + length)] = bytes(int(length))
    lines = struct.unpack_from(order + "H", block, root.place)[0]
    struct.pack_into(order + "I", block, root.place + 2 + 12 * lines, 0)


def _remove(block: bytearray, root: Directory, tag: int, order: str) -> None:
    """A line taken out of the first directory: those behind it move up, values stay where they are."""
    entry = root.get(tag)
    if entry is None:
        return
    lines = struct.unpack_from(order + "H", block, root.place)[0]
    end = root.place + 2 + 12 * lines + 4
    block[entry.place : end] = block[entry.place + 12 : end] + bytes(12)
    struct.pack_into(order + "H", block, root.place, lines - 1)


def from_tiff(root: Directory, order: str) -> bytes | None:
    """EXIF data of what describes the picture among the tags of a TIFF file; None where nothing does."""
    entries = tuple(entry for entry in root.entries if entry.tag in _DESCRIPTIVE)
    below = {tag: root.below[tag] for tag in (ifd.EXIF, ifd.GPS) if tag in root.below}
    if not below and not any(entry.tag in TEXTS for entry in entries):
        return None
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return header + ifd.written(Directory(entries, below), order, 8)


def with_entries(data: bytes | None, entries: tuple[Entry, ...]) -> bytes:
    """EXIF data with more lines in its first directory, in place of those of the same tags.

    The directory is written anew behind everything else, so that no value moves.

    Args:
        data: with or without prefix; None for none.
        entries: with values in the byte order of ``data``; little-endian where there is none.
    """
    block = bytearray(block_of(data) if data else b"II*\0\x08\0\0\0" + bytes(6))
    order = ifd.byte_order(block)
    root = ifd.first_directory(bytes(block))
    block += b"\0" * (len(block) % 2)
    place = len(block)
    lines = {entry.tag: bytes(block[entry.place : entry.place + 12]) for entry in root.entries}
    free = place + 2 + 12 * len({*lines, *(entry.tag for entry in entries)}) + 4
    values = b""
    for entry in entries:
        lines[entry.tag], values = ifd.line(entry, order, free, values)
    block += struct.pack(order + "H", len(lines)) + b"".join(lines[tag] for tag in sorted(lines))
    block += struct.pack(order + "I", root.next) + values
    struct.pack_into(order + "I", block, 4, place)
    return bytes(block)


def with_orientation(data: bytes | None, value: int) -> bytes | None:
    """EXIF data with this orientation."""
    if orientation(data) == value:
        return data
    order = ifd.byte_order(block_of(data)) if data else "<"
    return with_entries(data, (Entry(ORIENTATION, SHORT, 1, ifd.packed([value], SHORT, order)),))


def with_resolution(data: bytes | None, resolution: Resolution) -> bytes:
    """EXIF data with this resolution, for formats that have no other place for it."""
    order = ifd.byte_order(block_of(data)) if data else "<"
    x, y = (ifd.packed(rational(value), RATIONAL, order) for value in (resolution.x, resolution.y))
    unit = ifd.packed([_INCH if resolution.absolute else 1], SHORT, order)
    entries = (Entry(X_RESOLUTION, RATIONAL, 1, x), Entry(Y_RESOLUTION, RATIONAL, 1, y), Entry(UNIT, SHORT, 1, unit))
    return with_entries(data, entries)
