"""EXIF data, kept byte for byte except for values that must change with the pixels.

Values keep their offsets in the block. Camera makers' notes contain offsets into it and so stay readable.
"""

from __future__ import annotations

import struct

from safmn.inference.pictures import ifd
from safmn.inference.pictures.ifd import LONG, RATIONAL, SHORT, Directory, Entry
from safmn.inference.pictures.resolution import Resolution

PREFIX = b"Exif\0\0"  # precedes the block in JPEG
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, UNIT = 274, 282, 283, 296
TEXTS = (270, 271, 272, 305, 306, 315, 33432)
"""Tags of ImageDescription, Make, Model, Software, DateTime, Artist and Copyright."""
_DESCRIPTIVE = (*TEXTS, X_RESOLUTION, Y_RESOLUTION, UNIT)
_SIZES = ((ifd.EXIF, 40962, 40963), (None, 256, 257))  # (directory, tag of the width, tag of the height)
_THUMBNAIL_AT, _THUMBNAIL_BYTES = 513, 514
_INDEX = 1  # InteroperabilityIndex, a tag of the interoperability directory
_INCH, _CM = 2, 3  # values of ResolutionUnit
_FINEST = 1000  # denominator of resolutions that are not whole numbers


def block_of(data: bytes) -> bytes:
    """Return EXIF data without the prefix that some formats put before it."""
    return data.removeprefix(PREFIX)


def orientation(data: bytes | None) -> int:
    """Return the orientation that EXIF data states, 1 to 8; 1 if it states none or is damaged."""
    try:
        block = block_of(data or b"")
        value = ifd.number(ifd.first_directory(block).get(ORIENTATION), ifd.byte_order(block))
    except (ValueError, struct.error):
        return 1
    return int(value) if value is not None and 1 <= value <= 8 else 1


def checked(data: bytes | None) -> bytes | None:
    """Return EXIF data without prefix; None if there is none or it has no entries.

    Raises:
        ValueError, struct.error: the data is damaged.
    """
    block = block_of(data or b"")
    return block if block and ifd.first_directory(block).entries else None


def is_adobe_rgb(data: bytes | None) -> bool:
    """Return whether EXIF data declares Adobe RGB colours (a DCF option file: interoperability index R03)."""
    try:
        details = ifd.first_directory(block_of(data or b"")).below.get(ifd.EXIF)
    except (ValueError, struct.error):
        return False
    rules = details.below.get(ifd.INTEROPERABILITY) if details else None
    index = rules.get(_INDEX) if rules else None
    return index is not None and index.value.startswith(b"R03")


def resolution(data: bytes | None) -> Resolution | None:
    """Return the resolution that EXIF data states; None if it states none or is damaged."""
    if not data:
        return None
    try:
        block = block_of(data)
        return resolution_in(ifd.first_directory(block), ifd.byte_order(block))
    except (ValueError, struct.error):
        return None


def resolution_in(root: Directory, order: str) -> Resolution | None:
    """Return the resolution that a directory states, or None. ``order`` is its byte order, ``<`` or ``>``."""
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
    """Return EXIF data for pixels of this size: sizes and resolution changed in place, the old thumbnail removed.

    Args:
        data: EXIF data with or without prefix.
        size: (width, height) in pixels.
        resolution: the new resolution; it only replaces an existing one.
        turned: the orientation was applied to the pixels, so set it to 1.
        bare: remove the orientation.

    Returns:
        EXIF data without prefix. Damaged data is returned unchanged.
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
    """Change an integer inside its directory entry; a SHORT becomes a LONG if the value needs it."""
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
    """Return a positive number as numerator and denominator."""
    return (round(value), 1) if abs(value - round(value)) < 0.5 / _FINEST else (round(value * _FINEST), _FINEST)


def _drop_thumbnail(block: bytearray, root: Directory, order: str) -> None:
    """Remove the pointer to the thumbnail's directory and blank the thumbnail's pixels."""
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
    """Remove an entry from the first directory: later entries move up, values keep their places."""
    entry = root.get(tag)
    if entry is None:
        return
    lines = struct.unpack_from(order + "H", block, root.place)[0]
    end = root.place + 2 + 12 * lines + 4
    block[entry.place : end] = block[entry.place + 12 : end] + bytes(12)
    struct.pack_into(order + "H", block, root.place, lines - 1)


def from_tiff(root: Directory, order: str) -> bytes | None:
    """Return EXIF data with the descriptive tags and the EXIF and GPS directories of a TIFF file.

    Return None if there are neither texts nor such directories.
    """
    entries = tuple(entry for entry in root.entries if entry.tag in _DESCRIPTIVE)
    below = {tag: root.below[tag] for tag in (ifd.EXIF, ifd.GPS) if tag in root.below}
    if not below and not any(entry.tag in TEXTS for entry in entries):
        return None
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return header + ifd.written(Directory(entries, below), order, 8)


def with_entries(data: bytes | None, entries: tuple[Entry, ...]) -> bytes:
    """Return EXIF data with entries added to the first directory, replacing those with the same tags.

    The new directory is appended to the block, so that no existing value moves.

    Args:
        data: EXIF data with or without prefix, or None.
        entries: the new entries, with values in the byte order of ``data`` (little-endian if ``data`` is None).
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
    """Return EXIF data with this orientation; None if there is no data and none is needed (orientation 1)."""
    if orientation(data) == value:
        return data
    order = ifd.byte_order(block_of(data)) if data else "<"
    return with_entries(data, (Entry(ORIENTATION, SHORT, 1, ifd.packed([value], SHORT, order)),))


def with_resolution(data: bytes | None, resolution: Resolution) -> bytes:
    """Return EXIF data with this resolution, for formats that have no other place for it."""
    order = ifd.byte_order(block_of(data)) if data else "<"
    x, y = (ifd.packed(rational(value), RATIONAL, order) for value in (resolution.x, resolution.y))
    unit = ifd.packed([_INCH if resolution.absolute else 1], SHORT, order)
    entries = (Entry(X_RESOLUTION, RATIONAL, 1, x), Entry(Y_RESOLUTION, RATIONAL, 1, y), Entry(UNIT, SHORT, 1, unit))
    return with_entries(data, entries)
