"""Compose the frames of animated GIF and PNG files as browsers do.

Pillow only decodes the separate frames. It composes them differently from browsers: it fills the areas that a GIF
clears with a colour, and applies the alpha of PNG frames twice.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from safmn.value_types import Array

_KEEP, _CLEAR, _RESTORE = 0, 1, 2
_PNG = b"\x89PNG\r\n\x1a\n"
_GIF_DISPOSALS = {2: _CLEAR, 3: _RESTORE, 4: _RESTORE}  # 3 is "restore"; some programs wrote 4 for it
_EXTENSION, _IMAGE, _CONTROL = 0x21, 0x2C, 0xF9


@dataclass(frozen=True)
class _Part:
    """A frame before composition.

    Attributes:
        file: a GIF or PNG file with only this frame.
        left, top: its position on the canvas in pixels.
        over: whether it is blended over the canvas by its alpha; otherwise it replaces the pixels.
        disposal: what happens to its area before the next frame: kept, cleared, or restored to the state before it.
    """

    file: bytes
    left: int
    top: int
    over: bool
    disposal: int


def composed(path: Path, kind: str, size: tuple[int, int]) -> Iterator[Array]:
    """Yield the composed frames of a file, RGBA uint8 (H, W, 4).

    If a PNG has a separate still image for programs without animations, it comes first.

    Args:
        path: the file.
        kind: ``GIF`` or ``PNG``.
        size: (width, height) of the animation.

    Raises:
        Exception: the file is damaged; the type depends on the decoder (ValueError, OSError, IndexError, ...).
    """
    content = path.read_bytes()
    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    for number, part in enumerate(_gif_parts(content) if kind == "GIF" else _png_parts(content)):
        if part is None:
            with Image.open(io.BytesIO(content)) as image:  # the still image, which is not part of the animation
                yield np.array(image.convert("RGBA"))
            continue
        frame = _decoded(part.file)
        rows = slice(part.top, part.top + frame.shape[0])
        columns = slice(part.left, part.left + frame.shape[1])
        place = canvas[rows, columns]
        before = place.copy()
        frame = frame[: place.shape[0], : place.shape[1]]
        place[...] = _over(frame, place) if part.over else frame
        yield canvas.copy()
        if part.disposal == _CLEAR or (part.disposal == _RESTORE and number == 0):
            place[...] = 0
        elif part.disposal == _RESTORE:
            place[...] = before


def _decoded(file: bytes) -> Array:
    with Image.open(io.BytesIO(file)) as image:
        return np.array(image.convert("RGBA"))


def _over(above: Array, below: Array) -> Array:
    """Blend one RGBA image over another, both with straight alpha."""
    if not ((above[..., 3] > 0) & (above[..., 3] < 255)).any():
        return np.where(above[..., 3:] == 255, above, below)
    return np.array(Image.alpha_composite(Image.fromarray(below.copy()), Image.fromarray(above.copy())))


def _gif_parts(content: bytes) -> Iterator[_Part]:
    """Yield each frame as a GIF of the frame's size (GIF89a specification)."""
    table = 3 * 2 ** ((content[10] & 7) + 1) if content[10] & 0x80 else 0
    palette = content[13 : 13 + table]
    place, control = 13 + table, b""
    while place < len(content):
        if content[place] == _EXTENSION:
            end = _behind_blocks(content, place + 2)
            control = content[place:end] if content[place + 1] == _CONTROL else control
            place = end
        elif content[place] == _IMAGE:
            left, top, width, height = np.frombuffer(content, "<u2", 4, place + 1).tolist()
            flags = content[place + 9]
            colours = 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
            end = _behind_blocks(content, place + 11 + colours)
            disposal = control[3] >> 2 & 7 if control else 0
            plain = control[:3] + bytes([control[3] & 1]) + control[4:] if control else b""
            image = content[place : place + 1] + bytes(4) + content[place + 5 : end]
            screen = content[:6] + np.array([width, height], "<u2").tobytes() + content[10:13] + palette
            yield _Part(screen + plain + image + b"\x3b", left, top, True, _GIF_DISPOSALS.get(disposal, _KEEP))
            place, control = end, b""
        else:
            return  # the trailer, or data after the end


def _behind_blocks(content: bytes, place: int) -> int:
    """Return the offset after a chain of sub-blocks, each of which begins with its length; length 0 ends the chain."""
    while place < len(content) and content[place]:
        place += content[place] + 1
    return place + 1


def _png_parts(content: bytes) -> Iterator[_Part | None]:
    """Yield each frame as a PNG of the frame's size, and None for a still image outside the animation.

    PNG specification, third edition, 11.3.6.
    """
    header, shared, control, data, begun = b"", b"", b"", b"", False
    for kind, body in _png_chunks(content):
        if kind == b"IHDR":
            header = body
        elif kind == b"fcTL":
            if control and data:
                yield _png_part(header, shared, control, data)
            control, data = body, b""
        elif kind == b"IDAT":
            if not control and not begun:
                yield None
            begun = True
            data += body if control else b""
        elif kind == b"fdAT":
            data += body[4:]
        elif kind in (b"PLTE", b"tRNS") and not begun:
            shared += _chunk(kind, body)
    if control and data:
        yield _png_part(header, shared, control, data)


def _png_part(header: bytes, shared: bytes, control: bytes, data: bytes) -> _Part:
    left, top = int.from_bytes(control[12:16], "big"), int.from_bytes(control[16:20], "big")
    own = _chunk(b"IHDR", control[4:12] + header[8:])
    file = _PNG + own + shared + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return _Part(file, left, top, control[25] == 1, control[24])


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_PNG)
    while place + 12 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        yield kind, content[place + 8 : place + 8 + length]
        place += length + 12


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
