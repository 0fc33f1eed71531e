"""What AVIF, HEIC and JPEG 2000 files say in their boxes (ISO/IEC 14496-12, 15444-1): colours and depth."""

from __future__ import annotations

from collections.abc import Iterator

_CONTAINERS = {b"meta": 4, b"stsd": 8, b"av01": 78}
_CONTAINERS |= dict.fromkeys((b"iprp", b"ipco", b"jp2h", b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0)
"""Boxes that hold boxes, and how many bytes stand before these."""
_DEEPEST = 10
_HIGH, _TWELVE = 0x40, 0x20  # bits of the third byte of av1C
_RESTRICTED = 2  # colr of JPEG 2000: a profile follows


def boxes(data: bytes | memoryview, depth: int = 0) -> Iterator[tuple[bytes, int, memoryview]]:
    """(type, place of the content in the file, content) of all boxes that are looked for here, in their order."""
    view = memoryview(data)
    yield from _boxes(view, 0, len(view), depth)


def _boxes(view: memoryview, start: int, end: int, depth: int) -> Iterator[tuple[bytes, int, memoryview]]:
    while start + 8 <= end and depth < _DEEPEST:
        size, kind, head = int.from_bytes(view[start : start + 4], "big"), bytes(view[start + 4 : start + 8]), 8
        if size == 1:
            size, head = int.from_bytes(view[start + 8 : start + 16], "big"), 16
        stop = end if size == 0 else min(start + size, end)
        if size != 0 and size < head:
            return
        yield kind, start + head, view[start + head : stop]
        if kind in _CONTAINERS:
            yield from _boxes(view, start + head + _CONTAINERS[kind], stop, depth + 1)
        start = stop


def code_points(data: bytes | memoryview) -> tuple[int, int] | None:
    """ColourPrimaries and TransferCharacteristics that an AVIF file states in its first ``colr`` box of kind nclx."""
    place = next(iter(code_points_at(data)), None)
    if place is None:
        return None
    return int.from_bytes(data[place : place + 2], "big"), int.from_bytes(data[place + 2 : place + 4], "big")


def code_points_at(data: bytes | memoryview) -> list[int]:
    """Where in the file they stand, two bytes each: of a still image, and of each track of an animation."""
    return [place + 4 for kind, place, content in boxes(data) if kind == b"colr" and content[:4] == b"nclx"]


def with_code_points(file: bytes, points: tuple[int, int]) -> bytes:
    """An AVIF file that states other code points.

    Raises:
        ValueError: it has no place for them.
    """
    places = code_points_at(file)
    if not places:
        raise ValueError("the encoder leaves no place for what colours mean")
    for place in places:
        file = file[:place] + b"".join(number.to_bytes(2, "big") for number in points) + file[place + 4 :]
    return file


def av1_depth(data: bytes | memoryview) -> int:
    """Bits a channel of an AVIF file: 8, 10 or 12."""
    for kind, _, content in boxes(data):
        if kind == b"av1C" and len(content) > 2:
            return (12 if content[2] & _TWELVE else 10) if content[2] & _HIGH else 8
    return 8


def jpeg2000_depth(data: bytes | memoryview) -> int:
    """Bits of the first channel of a JPEG 2000 file or code stream; 8 where it does not say."""
    view = bytes(memoryview(data)[:65536])
    place = view.find(b"\xff\x4f\xff\x51")  # start of code stream, SIZ
    return (view[place + 42] & 0x7F) + 1 if 0 <= place < len(view) - 42 else 8


def jpeg2000_profile(data: bytes | memoryview) -> bytes | None:
    """The profile that a JPEG 2000 file states."""
    for kind, _, content in boxes(data):
        if kind == b"colr" and content[:1] == bytes([_RESTRICTED]):
            return bytes(content[3:])
    return None
