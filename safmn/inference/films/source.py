"""Open films safely, without access to any other file, and decode their frames to upright RGB."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from safmn.errors import DataError, first_line
from safmn.inference.films.kinds import DEMUXERS, text_in
from safmn.value_types import Array

logger = logging.getLogger(__name__)


_UNSPECIFIED, _BT709, _BT601, _RGB = 2, 1, 6, 0
_MATRICES = {_BT709: 1, 4: 4, 5: 5, _BT601: 5, 7: 7, 9: 9}  # MatrixCoefficients of H.273 -> FFmpeg's SWS_CS constants
_LIMITED, _FULL = 1, 2
_HDR = {16: "PQ", 18: "HLG"}
_FLAGGED = ("h264", "hevc", "mpeg2video", "mpeg4", "vc1", "wmv3", "vvc")  # codecs that flag each frame as interlaced
_STATES_LENGTH = ("mov", "matroska", "flv", "asf", "nut")  # containers that state the duration in the header
WHITE_16 = 255 * 256
"""White in FFmpeg's 16-bit RGB when it is converted from YUV of limited range, or to any YUV."""
_SLACK = 0.25  # seconds by which an undamaged film may end before its stated end


def av_module() -> Any:
    """Return the module ``av`` (PyAV).

    Raises:
        DataError: PyAV is not installed or too old.
    """
    try:
        import av
    except ImportError as error:
        raise DataError("films need the optional package av (PyAV): pip install av") from error
    if not hasattr(av.VideoFrame, "color_primaries"):
        raise DataError(f"films need PyAV 17 or newer, this is {av.__version__}: pip install --upgrade av")
    return av


def open_film(path: str | os.PathLike[str]) -> Any:
    """Open a film as a PyAV container such that FFmpeg reads no other file and nothing from the network.

    Raises:
        DataError: the file is not a film; the message names it.
    """
    av = av_module()
    safe = {"protocol_whitelist": "file", "format_whitelist": ",".join(DEMUXERS)}
    try:
        return av.open(f"file:{os.fspath(path)}", container_options=safe, metadata_errors="replace")
    except (av.error.FFmpegError, UnicodeError) as error:
        why = f"({first_line(error)})"
        if Path(path).is_file() and text_in(Path(path)):
            why = "(it is text: playlists and similar files, which refer to other files, are refused)"
        raise DataError(f"{path}: cannot be read as a film {why}") from error


def main_stream(container: Any, path: str | os.PathLike[str]) -> Any:
    """Return the video track to upscale, the one that FFmpeg considers the main one.

    Raises:
        DataError: there is no video track, or it cannot be decoded; the message names the file.
    """
    tracks = [stream for stream in container.streams.video if not stream.disposition & 0x400]  # no cover pictures
    if not tracks:
        raise DataError(f"{path}: this film has no video track")
    best = container.streams.best("video")
    stream = best if best in tracks else tracks[0]
    if stream.codec_context is None or stream.format is None:
        raise DataError(f"{path}: its video cannot be decoded (damaged, or in a format that FFmpeg does not know)")
    return stream


def shown_frames(stream: Any) -> int:
    """Return the number of frames that a film's header states, without those cut by an edit list; 0 if unknown."""
    if stream.frames and len(stream.index_entries) == stream.frames:
        return sum(not entry.is_discard for entry in stream.index_entries)
    return int(stream.frames)


@dataclass(frozen=True)
class FilmColours:
    """The colour space of a film's frames.

    Attributes:
        matrix, primaries, transfer: code points of H.273.
        full: whether the range is full (black is 0), not limited (black is 16).
    """

    matrix: int
    primaries: int
    transfer: int
    full: bool

    def of_larger(self, before: tuple[int, int], after: tuple[int, int]) -> FilmColours:
        """Return the colour space to state after resizing from one (height, width) to another.

        If a film does not state its matrix, players assume BT.601 for small frames and BT.709 for large ones. If the
        new size would change this guess, the matrix is stated.
        """
        guess = _guessed_matrix(*before)
        if self.matrix != _UNSPECIFIED or guess == _guessed_matrix(*after):
            return self
        primaries = self.primaries
        if primaries == _UNSPECIFIED:
            primaries = {576: 5, 480: 6, 486: 6}.get(before[0], primaries)
        return FilmColours(guess, primaries, self.transfer, self.full)

    def sws(self, size: tuple[int, int]) -> int:
        """Return FFmpeg's number (SWS_CS) of the matrix; an unstated one is guessed from the (height, width)."""
        return _MATRICES[_guessed_matrix(*size) if self.matrix == _UNSPECIFIED else self.matrix]


def _guessed_matrix(height: int, width: int) -> int:
    return _BT709 if height > 576 or width >= 1280 else _BT601


@dataclass(frozen=True)
class FilmFrame:
    """A decoded frame, with what the upscaled frame takes over.

    Attributes:
        image: (H, W, 3) RGB, uint8 or uint16, upright.
        pts: start of its display, in units of ``time_base``.
        time_base: length of a unit of time in seconds.
        duration: duration of its display in units of ``time_base``; 0 if the film does not state it.
        colours: its colour space.
        aspect: width of a pixel divided by its height; None if the film does not state it.
        size: (height, width) before the rotation.
    """

    image: Array
    pts: int
    time_base: Fraction
    duration: int
    colours: FilmColours
    aspect: Fraction | None
    size: tuple[int, int]


@dataclass
class FilmSource:
    """An opened film whose main video track is decoded in order. It also records damage.

    Attributes:
        container: the PyAV container.
        stream: the video track.
        path: the file that messages name.
        deep: whether to decode to 16 bits.
        deinterlace: as in :class:`safmn.inference.films.codecs.FilmOptions`.
        shift: seconds that are added to all times.
        decoded: number of decoded frames.
        interlaced: number of frames that were marked as interlaced (all, if ``deinterlace`` is "all").
        undecodable: number of packets after the first frame that could not be decoded.
        corrupt: number of frames that the decoder marked as damaged.
    """

    container: Any
    stream: Any
    path: Path
    deep: bool
    deinterlace: str
    shift: Fraction
    decoded: int = 0
    interlaced: int = 0
    undecodable: int = 0
    corrupt: int = 0
    _said: set[str] = field(default_factory=set)
    _packets: dict[int, int] = field(default_factory=dict)
    _end: float = 0.0
    _last: int | None = None
    _size: tuple[int, int] | None = None
    _filter: Any = None

    def items(self, others: set[int]) -> Iterator[Any]:
        """Yield frames as :class:`FilmFrame` and the packets of the ``others`` (stream indices), in file order."""
        self.stream.thread_type = "AUTO"
        for packet in self.container.demux():
            self._note(packet)
            if packet.stream.index == self.stream.index:
                yield from map(self._picture, self._deinterlaced(self._decode(packet)))
            elif packet.stream.index in others and packet.size:
                yield packet
        yield from map(self._picture, self._flushed())

    def damage(self) -> str | None:
        """Describe in a sentence what is missing from the film; None if it is complete. Call it after the last item."""
        name = self.container.format.name.partition(",")[0]
        if name == "mov":  # before the frames: whether half a packet is an error depends on the decoder's threads
            for stream in self.container.streams:
                stated, read = len(stream.index_entries), self._packets.get(stream.index, 0)
                if stream.type in ("video", "audio") and read < stated:
                    return f"only {read} of {stated} {stream.type} packets could be read: the file is cut or damaged"
        if self.undecodable:
            return f"{self.undecodable} of its frames are damaged and cannot be decoded"
        if name in _STATES_LENGTH and self.container.duration:
            stated = (self.container.duration + min(self.container.start_time or 0, 0)) / 1e6
            end = self._end + float(self.shift)
            if end < stated - max(_SLACK, 0.01 * stated):
                return f"it ends after {end:.1f} of {stated:.1f} seconds: the file is cut or damaged"
        return None

    def _note(self, packet: Any) -> None:
        if packet.size:
            index = packet.stream.index
            self._packets[index] = self._packets.get(index, 0) + (not packet.is_corrupt)
        if packet.pts is not None:
            self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def _decode(self, packet: Any) -> list[Any]:
        """Return the frames that a packet completes; count a packet that cannot be decoded as damage.

        Before the first frame it is not counted: recordings of broadcasts begin in the middle of a sequence.
        """
        try:
            frames = packet.decode()
        except av_module().error.FFmpegError as error:
            self.undecodable += self.decoded > 0
            logger.debug("%s: a frame cannot be decoded (%s)", self.path, error)
            return []
        self.decoded += len(frames)
        return list(frames)

    def _deinterlaced(self, frames: list[Any]) -> Iterator[Any]:
        for frame in frames:
            combed = self.deinterlace == "all" or self._is_interlaced(frame)
            self.interlaced += combed
            if combed and self.deinterlace == "off":
                self._say("interlaced", "its frames are interlaced and stay so: moving edges show combs.")
            elif combed and self._filter is None:
                self._filter = _Deinterlacer(frame, self.stream.time_base, self.deinterlace, self._stated_order(frame))
                self._say(
                    "interlaced", "its frames are interlaced; bwdif deinterlaces them (--deinterlace off keeps them)."
                )
            if self._filter is None:
                yield frame
            else:
                yield from self._filter.feed(frame)

    def _flushed(self) -> Iterator[Any]:
        if self._filter is not None:
            yield from self._filter.end()
            if self.deinterlace == "auto" and self.interlaced < self.decoded:
                logger.warning(
                    "%s: %d of %d frames were interlaced; the others were left as they are.",
                    *(self.path, self.interlaced, self.decoded),
                )

    def _is_interlaced(self, frame: Any) -> bool:
        return bool(frame.interlaced_frame) or self._stated_order(frame) is not None

    def _stated_order(self, frame: Any) -> str | None:
        """Return the field order, "tff" or "bff", if only the container states it, else None."""
        context = self.stream.codec_context
        if frame.interlaced_frame or context.codec.canonical_name in _FLAGGED:
            return None
        return {2: "tff", 5: "tff", 3: "bff", 4: "bff"}.get(int(getattr(context, "field_order", 0)))

    def _say(self, topic: str, text: str) -> None:
        """Log a warning, once for each topic."""
        if topic not in self._said:
            self._said.add(topic)
            logger.warning("%s: %s", self.path, text)

    def _picture(self, frame: Any) -> FilmFrame:
        size = frame.height, frame.width
        self._size = self._size or size
        if size != self._size:
            self._say("size", "its frames change their size; all are scaled to that of the first.")
        colours = self._colours(frame)
        if frame.is_corrupt:
            self.corrupt += 1
            self._say("corrupt", "some of its frames are damaged; the decoder's substitutes are upscaled.")
        image, turned = _upright(frame, self._rgb(frame, colours), self)
        aspect = frame_aspect(self.stream)
        if aspect and turned:
            aspect = 1 / aspect
        # The film's time base, also after the filter, which halves it.
        base = self.stream.time_base
        pts = self._time(frame, base)
        duration = round((frame.duration or 0) * (frame.time_base or base) / base)
        return FilmFrame(image, pts, base, duration, colours, aspect, self._size)

    def _time(self, frame: Any, base: Fraction) -> int:
        """Return the start of a frame's display, corrected if necessary so that times increase."""
        given = frame.pts if frame.pts is not None else frame.dts
        step = max(round(1 / (self.stream.average_rate or 25) / base), 1)
        if given is None:
            pts = 0 if self._last is None else self._last + step
        else:
            pts = round(given * (frame.time_base or base) / base) + round(self.shift / base)
        if self._last is not None and pts <= self._last:
            self._say("times", "the times of its frames do not increase; some are moved.")
            pts = self._last + 1
        self._last = pts
        return pts

    def _colours(self, frame: Any) -> FilmColours:
        matrix = int(frame.colorspace)
        is_rgb = frame.format.is_rgb or frame.format.has_palette
        if is_rgb:
            matrix = _BT709
        elif matrix in (_RGB, 3):  # RGB or reserved, which a YUV format cannot have: a mistake in the file
            matrix = _UNSPECIFIED
        elif matrix != _UNSPECIFIED and matrix not in _MATRICES:
            raise DataError(
                f"{self.path}: its colours use matrix {matrix} of H.273 (YCgCo, ICtCp, Dolby Vision, ...), which is "
                f"not supported; convert the film to BT.709 first"
            )
        transfer = int(frame.color_trc)
        if transfer in _HDR:
            self._say(
                "hdr",
                f"it is HDR ({_HDR[transfer]}), which is kept without its mastering metadata; the networks were "
                f"trained only on standard dynamic range.",
            )
        full = not is_rgb and (int(frame.color_range) == _FULL or frame.format.name.startswith("yuvj"))
        return FilmColours(matrix, int(frame.color_primaries), transfer, full)

    def _rgb(self, frame: Any, colours: FilmColours) -> Array:
        """Return a frame as (H, W, 3) RGB; transparency is put on black, as players show it."""
        alpha = any(part.is_alpha for part in frame.format.components)
        if alpha or self.stream.metadata.get("alpha_mode") == "1":
            self._say("alpha", "its transparency is dropped: the frames are put on black.")
        name = ("rgba64le" if alpha else "rgb48le") if self.deep else ("rgba" if alpha else "rgb24")
        is_yuv = not (frame.format.is_rgb or frame.format.has_palette)
        if is_yuv:
            frame.colorspace = colours.sws((frame.height, frame.width))
            frame.color_range = _FULL if colours.full else _LIMITED
        image: Array = convert(frame, name, size=self._size, dst_color_range=_FULL).to_ndarray()
        if alpha:
            white = np.iinfo(image.dtype).max
            image = ((image[..., :3].astype(np.uint32) * image[..., 3:] + white // 2) // white).astype(image.dtype)
        return to_white(image, 65535, WHITE_16) if is_yuv and not colours.full else image


class _Deinterlacer:
    """FFmpeg's filter bwdif, one output frame for each input frame.

    Frames that are not interlaced pass unchanged, unless ``which`` is "all".
    """

    def __init__(self, frame: Any, time_base: Fraction, which: str, order: str | None) -> None:
        graph = av_module().filter.Graph()
        source = graph.add(
            "buffer",
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={time_base}"
            f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
        )
        chain = [source]
        if order:
            chain.append(graph.add("setfield", order))
        chain.append(graph.add("bwdif", f"mode=send_frame:deint={'all' if which == 'all' else 'interlaced'}"))
        graph.link_nodes(*chain, graph.add("buffersink")).configure()
        self._graph = graph

    def feed(self, frame: Any) -> list[Any]:
        self._graph.push(frame)
        return self._ready()

    def end(self) -> list[Any]:
        self._graph.push(None)
        return self._ready()

    def _ready(self) -> list[Any]:
        frames = []
        with contextlib.suppress(av_module().error.BlockingIOError, EOFError):
            while True:
                frames.append(self._graph.pull())
        return frames


def frame_aspect(stream: Any) -> Fraction | None:
    """Return the width of a pixel divided by its height; None if the film does not state it."""
    return stream.sample_aspect_ratio or None


def convert(frame: Any, pix_fmt: str, *, size: tuple[int, int] | None = None, **colours: Any) -> Any:
    """Convert a PyAV frame to another pixel format, and to another (height, width) if ``size`` is given.

    FFmpeg's default is a fast conversion that darkens by one level, so the accurate one is used. PyAV before 18 (Python
    3.10) only has the fast one. Interpolation is bilinear, but bicubic for 16 bits, because there FFmpeg's bilinear one
    is defective: yuv420p to rgb48le with full chroma interpolation gives garbage.
    """
    known = av_module().video.reformatter.Interpolation
    deep = any("48" in name or "64" in name for name in (pix_fmt, frame.format.name))
    flags = known.BICUBIC if deep else known.BILINEAR
    if hasattr(known, "ACCURATE_RND"):
        flags = flags | known.ACCURATE_RND | known.FULL_CHR_H_INT
    height, width = size or (frame.height, frame.width)
    return frame.reformat(width=width, height=height, format=pix_fmt, interpolation=flags, **colours)


def to_white(image: Array, ours: int, theirs: int) -> Array:
    """Rescale 16-bit values so that white changes from ``theirs`` to ``ours``; return 8-bit values unchanged."""
    if image.dtype != np.uint16 or ours == theirs:
        return image
    return np.clip(np.rint(image * np.float32(ours / theirs)), 0, 65535).astype(np.uint16)


def _upright(frame: Any, image: Array, source: FilmSource) -> tuple[Array, bool]:
    """Rotate and mirror a frame as the film states; return it and whether width and height were swapped."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return image, False
    a, b, c, d = matrix
    if (a, d) != (0, 0) and (b, c) != (0, 0):
        source._say("turned", "its rotation is not a multiple of 90 degrees; its frames are not rotated.")
        return image, False
    swapped = a == 0
    if swapped:
        image = image.transpose(1, 0, 2)
        a, d = c, b  # the signs of the swapped axes
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image), swapped


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """Return the signs (a, b, c, d) of the display matrix, or None if there is none.

    The matrix maps (x, y) of the frame to (a x + c y, b x + d y) on the screen.
    """
    try:
        content = bytes(frame.side_data["DISPLAYMATRIX"])
    except KeyError:
        return None
    a, b, _, c, d = struct.unpack("<5i", content[:20])
    big = max(map(abs, (a, b, c, d))) / 100  # some files contain about 1e-5 instead of 0
    a, b, c, d = ((value > big) - (value < -big) for value in (a, b, c, d))
    return a, b, c, d
