"""Recognise films by file name and first bytes, and list the containers that can be read and written."""

from __future__ import annotations

from pathlib import Path

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mj2"),  # the MP4 family
    *(".mkv", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv", ".ogv", ".ogm", ".mxf", ".dv", ".nut", ".rm", ".rmvb"),
    *(".mpg", ".mpeg", ".m2v", ".mpv", ".vob", ".ts", ".mts", ".m2t", ".m2ts", ".tp", ".trp", ".mod", ".tod", ".wtv"),
)
TARGETS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".webm": "webm", ".m4v": "ipod", ".ts": "mpegts"}
"""The containers that can be written: suffix and FFmpeg's name."""

# FFmpeg's demuxers that read only the given file. All others are refused: playlists and scripts (hls, dash, concat,
# sdp, image2, ...) open other files or network addresses.
DEMUXERS = (
    *("mov", "matroska", "avi", "asf", "flv", "ogg", "mxf", "dv", "nut", "rm", "wtv", "gxf", "ivf", "nsv", "pva"),
    *("mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "vvc", "obu", "vc1", "vc1test", "yuv4mpegpipe", "swf"),
)
_AMBIGUOUS = (".ts", ".mts", ".mod", ".rm", ".tp", ".dv")  # also TypeScript, music or models: check the content
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"crx ", b"jxl ", b"jp2 ", b"jpx ")
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STARTS = (
    *(b"\x1a\x45\xdf\xa3", b"FLV\x01", b".RMF", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"nut/multimedia container"),
    *(
        b"\x00\x00\x01\xba",
        b"\x00\x00\x01\xb3",
        b"\x06\x0e\x2b\x34\x02\x05\x01\x01",
        b"\xb7\xd8\x00\x20\x37\x49\xda\x11",
    ),
)


def is_film(path: Path, *, named: bool = True) -> bool:
    """Return whether to treat a file as a film.

    Most suffixes of films decide this alone. The content decides for ambiguous suffixes (``.ts`` is also TypeScript)
    and for any other suffix of a file that the user ``named`` (rather than its folder).
    """
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES and suffix not in _AMBIGUOUS:
        return True
    return (suffix in _AMBIGUOUS or named) and starts_as_film(path)


def starts_as_film(path: Path) -> bool:
    """Return whether the first bytes are those of a film container; False if the file cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(2048)
    except OSError:
        return False
    if head[4:8] in _BOXES:
        return head[4:8] != b"ftyp" or head[8:12] not in _STILL_BRANDS
    riff = head.startswith(b"RIFF") and head[8:11] == b"AVI"
    ogg = head.startswith(b"OggS") and any(
        mark in head for mark in (b"theora", b"fishead", b"video", b"BBCD", b"OVP80")
    )
    return riff or ogg or head.startswith((*_STARTS, b"\x1f\x07\x00")) or _is_transport_stream(head)


def _is_transport_stream(head: bytes) -> bool:
    """Return whether four packets in a row begin with the sync byte.

    A packet has 188 bytes, 192 on Blu-ray and in AVCHD, or 204 in broadcasts.
    """
    return any(
        all(head[start + number * size : start + number * size + 1] == b"\x47" for number in range(4))
        for size in (188, 192, 204)
        for start in (0, size - 188)
    )


def text_in(path: Path) -> bool:
    """Return whether a file is text, such as a playlist or source code."""
    with path.open("rb") as file:
        head = file.read(512)
    return bool(head) and not any(byte < 9 or 13 < byte < 32 for byte in head)
