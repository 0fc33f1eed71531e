"""Read and make the PNG chunks that describe a picture: colours, texts, XMP, IPTC, EXIF and resolution."""

from __future__ import annotations

import binascii
import zlib
from pathlib import Path

from safmn.inference.pictures.colours import CHUNKS
from safmn.inference.pictures.resolution import Resolution

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_XMP = b"XML:com.adobe.xmp"
_RAW_PROFILE = b"Raw profile type "
_RAW_XMP, _RAW_IPTC, _RAW_EXIF = (_RAW_PROFILE + name for name in (b"xmp", b"iptc", b"exif"))
_WANTED = (*CHUNKS, *TEXTS, b"pHYs", b"eXIf")
_METRE = 0.0254  # metres per inch
_LARGEST_TEXT = 2**26  # bytes to which a compressed text may expand


def read_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """Return (type, content) of the chunks that describe the picture; truncated chunks are left out."""
    found = []
    with path.open("rb") as file:
        if file.read(8) != _SIGNATURE:
            return []
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"IEND":
                break
            if kind not in _WANTED:
                file.seek(length + 4, 1)
                continue
            content = file.read(length)
            file.seek(4, 1)
            if len(content) == length:
                found.append((kind, content))
    return found


def keyword(content: bytes) -> bytes:
    """Return the keyword of a text chunk."""
    return content.split(b"\0", 1)[0]


def is_text(kind: bytes, content: bytes) -> bool:
    """Return whether a chunk is a text for people, not XMP or metadata stored as a "raw profile" text."""
    return kind in TEXTS and keyword(content) != _XMP and not keyword(content).startswith(_RAW_PROFILE)


def text_of(kind: bytes, content: bytes) -> bytes:
    """Return the text of a text chunk; empty if it is damaged."""
    _, _, rest = content.partition(b"\0")
    try:
        if kind == b"tEXt":
            return rest
        if kind == b"zTXt":
            return _expanded(rest[1:])
        compressed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
        return _expanded(rest) if compressed else rest
    except zlib.error:
        return b""


def _expanded(content: bytes) -> bytes:
    return zlib.decompressobj().decompress(content, _LARGEST_TEXT)


def xmp_of(chunks: list[tuple[bytes, bytes]]) -> bytes | None:
    """Return the XMP packet among the chunks, or None."""
    return _first(chunks, _XMP) or _profile(chunks, _RAW_XMP)


def iptc_of(chunks: list[tuple[bytes, bytes]]) -> bytes | None:
    """Return the IPTC data among the chunks, without Photoshop's wrapping (as ImageMagick and exiftool store it)."""
    return _profile(chunks, _RAW_IPTC)


def exif_of(chunks: list[tuple[bytes, bytes]]) -> bytes | None:
    """Return the EXIF data among the chunks, or None."""
    return next((content for kind, content in chunks if kind == b"eXIf"), None) or _profile(chunks, _RAW_EXIF)


def _first(chunks: list[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    return next((text_of(*chunk) for chunk in chunks if chunk[0] in TEXTS and keyword(chunk[1]) == wanted), None)


def _profile(chunks: list[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    """Return the binary data of a "raw profile" text: a name, the length and hexadecimal digits; None if damaged."""
    parts = (_first(chunks, wanted) or b"").split(None, 2)
    try:
        return binascii.unhexlify(b"".join(parts[2].split())) if len(parts) == 3 else None
    except binascii.Error:
        return None


def resolution_of(chunks: list[tuple[bytes, bytes]]) -> Resolution | None:
    """Return the resolution in the chunk pHYs, or None."""
    content = next((content for kind, content in chunks if kind == b"pHYs"), b"")
    x, y = int.from_bytes(content[:4], "big"), int.from_bytes(content[4:8], "big")
    if len(content) != 9 or not x or not y:
        return None
    return Resolution(x * _METRE, y * _METRE) if content[8] == 1 else Resolution(x, y, absolute=False)


def resolution_chunk(resolution: Resolution) -> tuple[bytes, bytes]:
    """Return the chunk pHYs for a resolution."""
    unit = _METRE if resolution.absolute else 1
    sides = (min(max(round(value / unit), 1), 2**31 - 1) for value in (resolution.x, resolution.y))
    return b"pHYs", b"".join(side.to_bytes(4, "big") for side in sides) + bytes([resolution.absolute])


def xmp_chunk(packet: bytes) -> tuple[bytes, bytes]:
    """Return the chunk for an XMP packet."""
    return b"iTXt", _XMP + b"\0\0\0\0\0" + packet


def iptc_chunk(data: bytes) -> tuple[bytes, bytes]:
    """Return the chunk for IPTC data."""
    digits = binascii.hexlify(data)
    lines = b"\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    return b"zTXt", _RAW_IPTC + b"\0\0" + zlib.compress(b"\niptc\n%8d\n" % len(data) + lines + b"\n")


def comment_chunk(text: bytes) -> tuple[bytes, bytes]:
    """Return the chunk for a comment: iTXt for non-ASCII UTF-8, else tEXt (ASCII or Latin-1)."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return b"tEXt", b"Comment\0" + text
    return (b"tEXt", b"Comment\0" + text) if text.isascii() else (b"iTXt", b"Comment\0\0\0\0\0" + text)
