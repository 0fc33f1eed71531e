"""Upscale films with PyAV frame by frame; other tracks are kept as far as the container can hold them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from safmn.errors import DataError, UserError, first_line
from safmn.inference.films import codecs as film_codecs
from safmn.inference.films import tracks as film_tracks
from safmn.inference.films.codecs import FilmOptions
from safmn.inference.films.kinds import TARGETS, VIDEO_SUFFIXES
from safmn.inference.films.source import (
    WHITE_16,
    FilmFrame,
    FilmSource,
    av_module,
    convert,
    main_stream,
    open_film,
    shown_frames,
    to_white,
)
from safmn.system.files import atomic_path
from safmn.system.prefetch import prefetch
from safmn.value_types import Array

__all__ = ["VIDEO_SUFFIXES", "Film", "FilmOptions", "Written", "probe", "upscale_video"]

logger = logging.getLogger(__name__)


_FRAME_DURATION = 1 << 8  # FFmpeg's AV_CODEC_FLAG_FRAME_DURATION: packets keep the durations of their frames
_OF_THE_CONTAINER = ("MAJOR_BRAND", "MINOR_VERSION", "COMPATIBLE_BRANDS", "ENCODER", "DURATION")


@dataclass(frozen=True)
class Film:
    """Facts from a film's header.

    Attributes:
        frames: number of frames; 0 if unknown.
        width, height: size of a frame in pixels.
        counted: whether the header states the number of frames; otherwise it is estimated from the duration.
    """

    frames: int
    width: int
    height: int
    counted: bool = False


@dataclass(frozen=True)
class Written:
    """The result of upscaling a film.

    Attributes:
        frames: number of frames written.
        damage: a sentence on what is missing from the source; None if it is complete.
    """

    frames: int
    damage: str | None = None


def probe(path: str | os.PathLike[str]) -> Film:
    """Read the header of a film.

    Raises:
        DataError: the file is not a film or has no video track; the message names it.
    """
    with open_film(path) as container:
        stream = main_stream(container, path)
        frames = shown_frames(stream)
        if not frames and stream.average_rate and container.duration:
            frames = round(container.duration / av_module().time_base * stream.average_rate)
        return Film(frames, stream.width, stream.height, counted=bool(stream.frames))


def upscale_video(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    upscale: Callable[[Array], Array],
    *,
    options: FilmOptions | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Written:
    """Upscale a film and write the result atomically.

    Times, sound, subtitles, chapters, languages and titles are kept. A track that the container cannot hold is
    converted or left out, with a warning. Interlaced frames are deinterlaced. If the film states a rotation, it is
    applied to the frames. Frames with more than 8 bits keep more than 8, if the encoder supports it.

    Args:
        source: a film in a format of :data:`safmn.inference.films.kinds.DEMUXERS`.
        target: the output; its suffix is one of :data:`safmn.inference.films.kinds.TARGETS` and gives the container.
        upscale: takes a uint8 or uint16 (H, W, 3) RGB image and returns the upscaled one of the same type.
        options: how to encode.
        on_frame: called after each frame.

    Returns:
        The number of frames and the damage found. A damaged film is written as far as it can be decoded.

    Raises:
        DataError: the film cannot be read, or cannot be written in that container; the message names the file.
        OptionError: the encoder that ``options`` asks for does not exist or does not support the other options.
    """
    av = av_module()
    source, target, options = Path(source), Path(target), options or FilmOptions()
    with (
        open_film(source) as reader,
        film_tracks.samples(functools.partial(open_film, source)) as found,
        atomic_path(target) as temporary,
    ):
        stream = main_stream(reader, source)
        pictures = _source(reader, stream, source, target, options)
        kind, private = TARGETS[target.suffix.lower()], _private(reader, target)
        try:
            with av.open(f"file:{temporary}", "w", format=kind, container_options=private) as writer:
                frames = _Transcoder(pictures, writer, target, options, found).run(upscale, on_frame)
        except UserError:
            raise
        except (av.error.FFmpegError, ValueError) as error:
            raise DataError(f"{source}: cannot be converted to {target.name} ({first_line(error)})") from error
        return Written(frames, pictures.damage())


def _source(reader: Any, stream: Any, path: Path, target: Path, options: FilmOptions) -> FilmSource:
    bits = max(part.bits for part in stream.format.components)
    encoder = film_codecs.choose(options, target.suffix, deep=bits > 8)
    if encoder.bits < bits:
        logger.warning("%s: its frames have %d bits; they are written with %d.", path, bits, encoder.bits)
    return FilmSource(reader, stream, path, encoder.bits > 8, options.deinterlace, film_tracks.shift_of(reader))


def _private(reader: Any, target: Path) -> dict[str, str]:
    """Return the container's options: MP4 needs one to hold unusual tags, such as those of phones, named with dots."""
    of_phones = any("." in key for key in reader.metadata)
    return {"movflags": "use_metadata_tags"} if of_phones and target.suffix.lower() in (".mp4", ".mov", ".m4v") else {}


def _upscaled(items: Iterable[Any], upscale: Callable[[Array], Array]) -> Iterator[tuple[Any, Array | None]]:
    """Yield each item of a film with its upscaled image; None for a packet of another track."""
    for item in items:
        yield item, upscale(item.image) if isinstance(item, FilmFrame) else None


class _Transcoder:
    """Transcode one film: read packets in file order, upscale and encode the frames, copy the rest.

    One thread decodes ahead, one upscales, and the calling thread encodes and writes.
    """

    def __init__(self, source: FilmSource, writer: Any, target: Path, options: FilmOptions, found: Any) -> None:
        self.source, self.writer, self.target, self.options, self.found = source, writer, target, options, found
        self.stream: Any = None
        self.tracks: dict[int, film_tracks.Track] = {}

    def run(self, upscale: Callable[[Array], Array], on_frame: Callable[[], None]) -> int:
        """Transcode the film; return the number of frames."""
        frames = 0
        waiting = []  # packets before the first frame; the output needs its size before packets can be written
        others = {stream.index for stream in self.source.container.streams} - {self.source.stream.index}
        with (
            contextlib.closing(prefetch(self.source.items(others), depth=4)) as items,
            contextlib.closing(prefetch(_upscaled(items, upscale))) as results,
        ):
            for item, image in results:
                if image is not None:
                    self._encode(image, item)
                    frames += 1
                    on_frame()
                elif self.stream is None:
                    waiting.append(item)
                else:
                    self._pass_on(item)
                if self.stream is not None and waiting:
                    for packet in waiting:
                        self._pass_on(packet)
                    waiting.clear()
        if not frames:
            raise DataError(f"{self.source.path}: no frame of this film can be decoded")
        for track in self.tracks.values():
            self.writer.mux(track.end())
        self.writer.mux(film_codecs.with_decoding_times(self.stream.encode(None), self.encoder.name, frames))
        return frames

    def _pass_on(self, packet: Any) -> None:
        track = self.tracks.get(packet.stream.index)
        if track is not None:
            self.writer.mux(track.feed(packet))

    def _encode(self, image: Array, picture: FilmFrame) -> None:
        if self.stream is None:
            self._begin(image, picture)
        if self.encoder.pad:
            height, width = image.shape[:2]
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._in_its_format(image, picture)
        frame.pts, frame.time_base, frame.duration = picture.pts, picture.time_base, picture.duration
        self.writer.mux(self.stream.encode(frame))

    def _in_its_format(self, image: Array, picture: FilmFrame) -> Any:
        """Convert an RGB image to a frame in the encoder's pixel format and the source's colour space."""
        frame_of = av_module().VideoFrame.from_ndarray
        if image.dtype == np.uint8:
            frame = frame_of(image, format="rgb24")
        else:
            white = 65535 if self.stream.format.is_rgb else WHITE_16
            frame = frame_of(to_white(image, white, 65535), format="rgb48le")
        if self.stream.format.is_rgb:
            return convert(frame, self.encoder.pix_fmt)
        matrix, colour_range = picture.colours.sws(picture.size), 2 if picture.colours.full else 1
        return convert(frame, self.encoder.pix_fmt, dst_colorspace=matrix, dst_color_range=colour_range)

    def _begin(self, image: Array, first: FilmFrame) -> None:
        """Add and configure all streams of the output, now that the size is known."""
        height, width = image.shape[:2]
        deep = image.dtype != np.uint8
        odd = bool(height % 2 or width % 2)
        self.encoder = film_codecs.choose(self.options, self.target.suffix, deep=deep, odd=odd)
        if self.encoder.pad:
            logger.warning(
                "%s: %dx%d is odd, which %s does not support with %s; the last row or column is repeated.",
                *(self.source.path, width, height, self.encoder.name, self.encoder.pix_fmt),
            )
        self.writer.metadata.update(
            {key: text for key, text in self.source.container.metadata.items() if key.upper() not in _OF_THE_CONTAINER}
        )
        self.tracks = film_tracks.add_tracks(
            self.source.container,
            self.writer,
            self.source.stream,
            functools.partial(self._add_pictures, image, first),
            self.found,
            source=self.source.path,
            target=self.target,
        )

    def _add_pictures(self, image: Array, first: FilmFrame) -> Any:
        """Add the stream of the upscaled frames, with the colour space and time base of the source; return it."""
        height, width = (side + side % 2 if self.encoder.pad else side for side in image.shape[:2])
        original = self.source.stream
        rate = original.average_rate or original.guessed_rate or Fraction(25)
        stream = self.encoder.add_to(self.writer, rate, width, height)
        context = stream.codec_context
        stream.time_base = context.time_base = first.time_base
        context.flags |= _FRAME_DURATION
        colours = first.colours.of_larger(first.size, (height, width))
        if stream.format.is_rgb:
            context.colorspace, context.color_range = 0, 2
        else:
            context.colorspace, context.color_range = colours.matrix, 2 if colours.full else 1
        context.color_primaries, context.color_trc = colours.primaries, colours.transfer
        if first.aspect is not None:
            context.sample_aspect_ratio = first.aspect
        if hasattr(context, "field_order"):
            context.field_order = 1  # progressive
        self._open(context)
        self.stream = stream
        return stream

    def _open(self, context: Any) -> None:
        try:
            context.open()
        except Exception as error:  # drivers and encoders raise many types
            raise film_codecs.no_encoder(self.encoder.name, self.source.path, error) from error
