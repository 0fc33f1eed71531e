"""Films, through PyAV: pictures upscaled one by one, sound and subtitles copied as they are."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from safmn.errors import DataError, UserError
from safmn.inference.pictures import decoding
from safmn.system.files import atomic_path
from safmn.system.prefetch import prefetch

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
_ENCODERS = {".webm": ("libvpx-vp9", {"crf": "20", "b": "0", "row-mt": "1", "cpu-used": "4"})}
_DEFAULT_ENCODER = ("libx264", {"crf": "15", "preset": "medium"})
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # of H.273 to FFmpeg's SWS_CS
_UNSPECIFIED, _BT709 = 2, 1
_COPIED = ("audio", "subtitle")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError("videos need the optional package av (PyAV): pip install av") from error
    if not hasattr(av.VideoFrame, "color_primaries"):
        raise DataError(f"videos need PyAV 17 or newer, this is {av.__version__}: pip install --upgrade av")
    return av


@dataclass(frozen=True)
class Film:
    """What a film says about itself.

    Attributes:
        frames: how many; 0 where it does not say.
        width, height: in pixels.
        counted: whether the number is that of the frames in the file, or follows from how long it and its sound last.
    """

    frames: int
    width: int
    height: int
    counted: bool = False


def probe(path: str | os.PathLike[str]) -> Film:
    """Read the head of a film.

    Raises:
        DataError: not a film, or without pictures; names the file.
    """
    av = _av()
    with _opened(av, path) as container:
        stream = _picture_stream(container, path)
        frames = stream.frames
        if not frames and stream.average_rate and container.duration:
            frames = round(container.duration / av.time_base * stream.average_rate)
        return Film(frames, stream.width, stream.height, counted=bool(stream.frames))


def upscale_video(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    upscale: Callable[[Array], Array],
    *,
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Upscale a film; the file is complete or absent.

    Timestamps, sound and subtitles stay as they are. Pictures are H.264 (VP9 in .webm) with 8 bits; where the film says
    that it is to be shown rotated, they are rotated.

    Args:
        source: any film that FFmpeg reads.
        target: the container is told by the suffix, and must be able to hold the sound as it is.
        upscale: uint8 (H, W, 3) RGB to the same, larger.
        on_frame: called after each picture.

    Raises:
        DataError: the film cannot be read, or not be written in that container; names the file.
    """
    av = _av()
    with _opened(av, source) as reader, atomic_path(Path(target)) as temporary:
        _picture_stream(reader, source)
        try:
            with av.open(os.fspath(temporary), "w") as writer:
                _transcode(_Films(reader, writer, Path(source), Path(target)), upscale, on_frame)
        except UserError:
            raise
        except (av.error.FFmpegError, ValueError) as error:  # the second: sound that the container cannot hold
            raise DataError(f"{source}: cannot be turned into {Path(target).name} ({error})") from error


@dataclass(frozen=True)
class _Films:
    reader: Any
    writer: Any
    source: Path
    target: Path


def _opened(av: Any, path: str | os.PathLike[str]) -> Any:
    try:
        return av.open(os.fspath(path))
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a film ({error})") from error


def _picture_stream(container: Any, path: str | os.PathLike[str]) -> Any:
    if not container.streams.video:
        raise DataError(f"{path}: there are no pictures in this film")
    stream = container.streams.video[0]
    if stream.format is None:
        raise DataError(f"{path}: its pictures cannot be decoded (damaged, or in a format that FFmpeg does not know)")
    return stream


@dataclass(frozen=True)
class _Picture:
    """A decoded picture, and what its successor takes over from it."""

    image: Array
    pts: int | None
    time_base: Fraction
    colours: tuple[int, int, int]  # matrix, primaries, transfer
    aspect: Fraction | None  # of a pixel, width to height


def _transcode(films: _Films, upscale: Callable[[Array], Array], on_frame: Callable[[], None]) -> None:
    """Packets in the order of the file: sound is passed on, pictures are decoded ahead, upscaled and encoded."""
    pictures = films.reader.streams.video[0]
    pictures.thread_type = "AUTO"
    if any(part.bits > 8 for part in pictures.format.components):
        logger.warning("%s: its pictures have more than 8 bits; they are written with 8.", films.source)
    films.writer.metadata.update(films.reader.metadata)
    copied = {
        stream.index: films.writer.add_stream_from_template(stream)
        for stream in films.reader.streams
        if stream.type in _COPIED
    }
    encoder = None
    waiting = []  # packets before the first picture: its stream must exist when the first one is written
    with contextlib.closing(prefetch(_demux(films, set(copied)), depth=4)) as items:
        for item in items:
            if not isinstance(item, _Picture):
                item.stream = copied[item.stream.index]
                waiting.append(item)
            else:
                image = upscale(item.image)
                encoder = encoder or _encoder(films, pictures, image, item)
                films.writer.mux(encoder.encode(_frame(image, item, encoder.pix_fmt)))
                on_frame()
            if encoder is not None:
                for packet in waiting:
                    films.writer.mux(packet)
                waiting.clear()
    if encoder is None:
        raise DataError(f"{films.source}: no picture of this film can be decoded")
    films.writer.mux(encoder.encode(None))


def _demux(films: _Films, copied: set[int]) -> Iterator[Any]:
    """The packets to copy and the pictures of the first video stream, in the order of the file."""
    reader, pictures = films.reader, films.reader.streams.video[0]
    aspect = pictures.sample_aspect_ratio or None
    for packet in reader.demux(pictures, *(stream for stream in reader.streams if stream.index in copied)):
        if packet.stream.index in copied:
            if packet.dts is not None:  # None: the empty packet that ends a stream
                yield packet
            continue
        with decoding(films.source, "a picture"):
            frames = packet.decode()
        for frame in frames:
            turns = round(frame.rotation / 90)
            image = np.ascontiguousarray(np.rot90(_rgb(frame), turns))
            colours = (_matrix(frame), int(frame.color_primaries), int(frame.color_trc))
            turned = 1 / aspect if aspect and turns % 2 else aspect
            yield _Picture(image, frame.pts, frame.time_base, colours, turned)


def _rgb(frame: Any) -> Array:
    """A picture as (H, W, 3), uint8. FFmpeg's default is a fast conversion, which darkens by a level.

    PyAV before 18 (Python 3.10) has no other.
    """
    known = _av().video.reformatter.Interpolation
    flags = known.BILINEAR
    if hasattr(known, "ACCURATE_RND"):
        flags = flags | known.ACCURATE_RND | known.FULL_CHR_H_INT
    image: Array = frame.to_ndarray(format="rgb24", interpolation=flags)
    return image


def _matrix(frame: Any) -> int:
    """The matrix (H.273) of the output: the picture's own, BT.709 for RGB and for what FFmpeg cannot convert."""
    own = int(frame.colorspace)
    return own if own in _MATRICES or own == _UNSPECIFIED else _BT709


def _encoder(films: _Films, pictures: Any, image: Array, first: _Picture) -> Any:
    """The stream of the upscaled pictures, with the colours and the clock of the original ones."""
    name, options = _ENCODERS.get(films.target.suffix.lower(), _DEFAULT_ENCODER)
    stream = films.writer.add_stream(name, rate=pictures.average_rate or 25, options=options)
    stream.height, stream.width = image.shape[:2]
    even = stream.height % 2 == 0 and stream.width % 2 == 0
    stream.pix_fmt = "yuv420p" if even else "yuv444p"
    stream.codec_context.time_base = first.time_base
    context = stream.codec_context
    context.colorspace, context.color_primaries, context.color_trc = first.colours
    if first.aspect is not None:
        context.sample_aspect_ratio = first.aspect
    return stream


def _frame(image: Array, original: _Picture, pix_fmt: str) -> Any:
    av = _av()
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    frame = frame.reformat(format=pix_fmt, dst_colorspace=_MATRICES.get(original.colours[0]))
    frame.pts, frame.time_base = original.pts, original.time_base
    return frame
