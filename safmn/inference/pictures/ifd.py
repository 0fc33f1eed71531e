"""Read and write the directories (IFD) of EXIF data and TIFF files (TIFF 6.0, section 2), keeping every type.

A directory is a table with one entry per tag. Values are kept as bytes in the file's byte order and decoded only when
needed. Byte orders are ``<`` and ``>``, as in :mod:`struct`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

SHORT, LONG, RATIONAL = 3, 4, 5
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
"""Tags that point to another directory."""
_POINTERS = (EXIF, GPS, INTEROPERABILITY)
_DEEPEST = 4  # levels of nested directories


@dataclass(frozen=True)
class Entry:
    """An entry of a directory: tag, type, number of values, and their bytes; ``place`` is the entry's own offset."""

    tag: int
    kind: int
    count: int
    value: bytes
    place: int = 0

    @property
    def size(self) -> int:
        """Size of the value in bytes."""
        return _SIZES[self.kind] * self.count


@dataclass(frozen=True)
class Directory:
    """A directory.

    Attributes:
        entries: its entries.
        below: the directories that it points to, by tag.
        next: offset of the next directory in the chain; 0 if it is the last.
        place: its own offset.
    """

    entries: tuple[Entry, ...]
    below: dict[int, Directory]
    next: int = 0
    place: int = 0

    def get(self, tag: int) -> Entry | None:
        """Return the entry of a tag, or None."""
        return next((entry for entry in self.entries if entry.tag == tag), None)


def byte_order(block: bytes | bytearray) -> str:
    """Return the byte order of a TIFF structure, ``<`` or ``>``.

    Raises:
        ValueError: the bytes are not a TIFF structure.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
    if order is None or struct.unpack_from(order + "H", block, 2)[0] != 42:
        raise ValueError("it is not a TIFF structure")
    return order


def first_directory(block: bytes) -> Directory:
    """Return the directory that the header points to, with the EXIF, GPS and interoperability directories below it.

    Raises:
        ValueError, struct.error: the structure is damaged.
    """
    order = byte_order(block)
    return read_directory(block, struct.unpack_from(order + "I", block, 4)[0], order)


def read_directory(block: bytes | mmap.mmap, place: int, order: str, depth: int = 0) -> Directory:
    """Return the directory at an offset, without entries that point beyond the end.

    Raises:
        struct.error: the directory itself is cut off or lies beyond the end.
    """
    (count,) = struct.unpack_from(order + "H", block, place)
    entries, below = [], {}
    for number in range(count):
        line = place + 2 + 12 * number
        tag, kind, values = struct.unpack_from(order + "HHI", block, line)
        size = _SIZES.get(kind, 0) * values
        start = line + 8 if size <= 4 else struct.unpack_from(order + "I", block, line + 8)[0]
        if not size or start + size > len(block):
            continue
        entries.append(Entry(tag, kind, values, bytes(block[start : start + size]), line))
        if tag in _POINTERS and size == 4 and depth < _DEEPEST:
            try:
                below[tag] = read_directory(block, struct.unpack(order + "I", entries[-1].value)[0], order, depth + 1)
            except struct.error:  # the pointer leads beyond the end
                entries.pop()
    end = place + 2 + 12 * count
    following = struct.unpack_from(order + "I", block, end)[0] if end + 4 <= len(block) else 0
    return Directory(tuple(entries), below, following, place)


def written(directory: Directory, order: str, place: int) -> bytes:
    """Return the bytes of a directory and of those below it, for an even offset in a file; it is the chain's last."""
    entries = sorted((entry for entry in directory.entries if entry.tag not in _POINTERS), key=lambda entry: entry.tag)
    lines = len(entries) + len(directory.below)
    free = place + 2 + 12 * lines + 4
    values = b""
    table: dict[int, bytes] = {}
    for entry in entries:
        table[entry.tag], values = line(entry, order, free, values)
    for tag, child in directory.below.items():
        values += b"\0" * (len(values) % 2)
        table[tag] = struct.pack(order + "HHII", tag, LONG, 1, free + len(values))
        values += written(child, order, free + len(values))
    head = struct.pack(order + "H", lines)
    return head + b"".join(table[tag] for tag in sorted(table)) + bytes(4) + values


def line(entry: Entry, order: str, free: int, values: bytes) -> tuple[bytes, bytes]:
    """Return the twelve bytes of an entry, and ``values`` with the entry's value appended if it needs the space.

    ``values`` are the bytes behind the directory, which begin at offset ``free``.
    """
    head = struct.pack(order + "HHI", entry.tag, entry.kind, entry.count)
    if len(entry.value) <= 4:
        return head + entry.value.ljust(4, b"\0"), values
    values += b"\0" * (len(values) % 2)
    return head + struct.pack(order + "I", free + len(values)), values + entry.value


def in_order(entry: Entry, old: str, new: str) -> Entry:
    """Return the entry with its value converted from the byte order ``old`` to ``new``."""
    width = {SHORT: 2, 8: 2, LONG: 4, RATIONAL: 4, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}.get(entry.kind, 1)
    if old == new or width == 1:
        return entry
    parts = [entry.value[start : start + width][::-1] for start in range(0, len(entry.value), width)]
    return replace(entry, value=b"".join(parts))


def reordered(directory: Directory, old: str, new: str) -> Directory:
    """Return the directory, and those below it, converted from the byte order ``old`` to ``new``."""
    entries = tuple(in_order(entry, old, new) for entry in directory.entries)
    return replace(
        directory, entries=entries, below={tag: reordered(child, old, new) for tag, child in directory.below.items()}
    )


def number(entry: Entry | None, order: str) -> float | None:
    """Return the first value of an entry as a number; None if it is missing or not an unsigned number.

    Unsigned numbers are BYTE, SHORT, LONG and RATIONAL; a RATIONAL with denominator 0 gives None.
    """
    if entry is None:
        return None
    if entry.kind == RATIONAL:
        above, under = struct.unpack_from(order + "II", entry.value)
        return above / under if under else None
    code = {1: "B", SHORT: "H", LONG: "I"}.get(entry.kind)
    return struct.unpack_from(order + code, entry.value)[0] if code else None


def packed(values: Sequence[int], kind: int, order: str) -> bytes:
    """Return the bytes of SHORT or LONG values, or of RATIONAL values, given as two numbers each."""
    return struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
