"""XMP, kept as it is except for values that must change with the pixels."""

from __future__ import annotations

import re

from safmn.inference.pictures.resolution import Resolution

_WIDTHS = ("tiff:ImageWidth", "exif:PixelXDimension")
_HEIGHTS = ("tiff:ImageLength", "exif:PixelYDimension")
# Properties that describe a second image or a video after the first image; neither is written.
_OTHER_PARTS = (
    r"hdrgm:\w+",
    r"HDRGainMap:\w+",
    r"(?:GCamera|Camera):(?:MotionPhoto|MicroVideo)\w*",
    r"(?:GContainer|Container):\w+",
)


def fitted(
    packet: bytes, size: tuple[int, int], *, resolution: Resolution | None = None, turned: bool = False
) -> bytes:
    """Return an XMP packet for pixels of this size; arguments as in :func:`safmn.inference.pictures.exif.fitted`."""
    changes = [(name, str(size[0])) for name in _WIDTHS] + [(name, str(size[1])) for name in _HEIGHTS]
    if turned:
        changes.append(("tiff:Orientation", "1"))
    if resolution is not None and resolution.absolute:
        unit = _value(packet, "tiff:ResolutionUnit")
        for name, density in (("tiff:XResolution", resolution.x), ("tiff:YResolution", resolution.y)):
            changes.append((name, f"{round((density / 2.54 if unit == b'3' else density) * 10000)}/10000"))
    for name, value in changes:
        packet = _replaced(packet, name, value)
    return packet


def of_one_picture(packet: bytes) -> bytes:
    """Return the packet without the descriptions of gain maps and videos after the image."""
    for name in _OTHER_PARTS:
        packet = re.sub(rb"\s%b\s*=\s*(\"[^\"]*\"|'[^']*')" % name.encode(), b"", packet)
        packet = re.sub(rb"<(%b)(\s[^>]*)?>.*?</\1>" % name.encode(), b"", packet, flags=re.DOTALL)
    return packet


def _value(packet: bytes, name: str) -> bytes | None:
    match = re.search(rb"%b(?:\s*=\s*[\"']|>)\s*([^\"'<]*)" % name.encode(), packet)
    return match.group(1).strip() if match else None


def _replaced(packet: bytes, name: str, value: str) -> bytes:
    """Replace the value of a simple property, written as an attribute or as an element."""
    packet = re.sub(rb"(\s%b\s*=\s*[\"'])[^\"'<]*" % name.encode(), rb"\g<1>" + value.encode(), packet)
    return re.sub(rb"(<%b>)[^<]*" % name.encode(), rb"\g<1>" + value.encode(), packet)
