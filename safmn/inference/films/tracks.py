"""Carry over a film's other tracks: each is copied, converted or left out; the last two cause a warning."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from safmn.errors import first_line
from safmn.inference.films.kinds import TARGETS

logger = logging.getLogger(__name__)

_KINDS = {"audio": "sound", "subtitle": "subtitle", "video": "video", "data": "data"}
_SAMPLES = 6  # packets of each track for a test whether a container can hold it
_LOOKED_THROUGH = 600  # packets of the film that are searched for these samples
_BITS_PER_CHANNEL = 96_000  # bits per second
_SOUND = {  # (encoders for lossless sources, encoders for all sources), in order of preference
    "mp4": ((), ("aac",)),
    "ipod": (("alac",), ("aac",)),
    "mov": (("alac",), ("aac",)),
    "matroska": (("flac",), ("libopus", "aac", "flac")),
    "webm": ((), ("libopus",)),
    "mpegts": ((), ("aac", "mp2")),
}
_TEXT = {"mp4": "mov_text", "ipod": "mov_text", "mov": "mov_text", "matroska": "subrip", "webm": "webvtt"}
_IN_TRANSPORT_STREAM = (  # codecs that FFmpeg also reads there; it writes any
    *("mp1", "mp2", "mp3", "aac", "aac_latm", "ac3", "eac3", "dts", "truehd", "opus"),
    *("dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "h264", "hevc", "mpeg2video", "mpeg1video", "mpeg4"),
)
_OUTDATED = ("DURATION", "BPS", "NUMBER_OF_", "_STATISTICS", "ENCODER", "VENDOR_ID", "ROTATE")  # prefixes of tags


@dataclass
class Track:
    """A track that is copied unchanged.

    Attributes:
        out: its stream in the output.
        shift: seconds that are added to its times.
    """

    out: Any
    shift: Fraction
    _last: int | None = None

    def feed(self, packet: Any) -> list[Any]:
        """Return the packets to write for a packet of the source."""
        packet.stream = self.out
        moved = round(self.shift / packet.time_base)
        if packet.pts is not None:
            packet.pts += moved
        if packet.dts is not None:
            packet.dts += moved
        elif packet.pts is not None:
            packet.dts = packet.pts
        elif self._last is None:  # a cover picture has no time
            packet.pts = packet.dts = 0
        else:
            packet.dts = self._last + 1
        if self._last is not None and packet.dts <= self._last:  # containers require increasing times
            packet.dts = self._last + 1
            packet.pts = max(packet.dts, packet.dts if packet.pts is None else packet.pts)
        self._last = packet.dts
        return [packet]

    def end(self) -> list[Any]:
        """Return the packets that remain to be written at the end."""
        return []


class Sound(Track):
    """An audio track that is decoded and encoded again; gaps become silence, so that it stays in sync."""

    def __init__(self, out: Any, shift: Fraction, source: Any, where: str) -> None:
        super().__init__(out, shift)
        self.source = source
        self.where = where
        self.damaged = 0
        self._graph: Any = None

    def feed(self, packet: Any) -> list[Any]:
        """As for :class:`Track`."""
        import av

        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            self.damaged += 1
            return []
        return [done for frame in frames for done in self._encode(frame)]

    def end(self) -> list[Any]:
        """As for :class:`Track`."""
        packets: list[Any] = []
        with contextlib.suppress(EOFError):
            packets += [done for frame in self.source.codec_context.decode(None) for done in self._encode(frame)]
        if self._graph is not None:
            self._graph.push(None)
            packets += self._encoded()
        packets += self.out.encode(None)
        if self.damaged:
            logger.warning("%s: %d of its packets are damaged and were left out.", self.where, self.damaged)
        return packets

    def _encode(self, frame: Any) -> list[Any]:
        if self._graph is None:
            self._graph = self._resampler(frame)
        if frame.pts is not None:
            frame.pts += round(self.shift / self.source.time_base)
        self._graph.push(frame)
        return self._encoded()

    def _resampler(self, frame: Any) -> Any:
        """Return FFmpeg's filter graph that converts frames to the encoder's format."""
        import av

        context = self.out.codec_context
        graph = av.filter.Graph()
        layout, rate = context.layout.name, context.sample_rate
        chain = [
            graph.add_abuffer(
                sample_rate=frame.sample_rate, format=frame.format, layout=frame.layout, time_base=self.source.time_base
            ),
            graph.add("aresample", f"{rate}:async=1"),
            graph.add("aformat", f"sample_fmts={context.format.name}:sample_rates={rate}:channel_layouts={layout}"),
        ]
        if context.frame_size:
            chain.append(graph.add("asetnsamples", f"n={context.frame_size}:p=0"))
        graph.link_nodes(*chain, graph.add("abuffersink")).configure()
        return graph

    def _encoded(self) -> list[Any]:
        import av

        packets: list[Any] = []
        with contextlib.suppress(av.error.BlockingIOError, EOFError):
            while True:
                packets += self.out.encode(self._graph.pull())
        return packets


class Text(Track):
    """A subtitle track that is converted to another text format."""

    def __init__(self, out: Any, shift: Fraction, source: Any, where: str) -> None:
        super().__init__(out, shift)
        self.source = source
        self.where = where

    def feed(self, packet: Any) -> list[Any]:
        """As for :class:`Track`."""
        import av

        try:
            found = self.source.codec_context.decode2(packet)
            if found is None or not len(found):
                return []
            made = self.out.codec_context.encode_subtitle(found)
        except av.error.FFmpegError as error:
            logger.warning("%s: a line cannot be converted (%s) and is left out.", self.where, first_line(error))
            return []
        made.pts, made.dts, made.duration, made.time_base = packet.pts, packet.pts, packet.duration, packet.time_base
        return super().feed(made)


@dataclass(frozen=True)
class Samples:
    """The streams of a film and the first packets of each, by stream index."""

    streams: Sequence[Any]
    packets: Mapping[int, list[Any]]


@contextlib.contextmanager
def samples(open_source: Callable[[], Any]) -> Iterator[Samples]:
    """Open a film with ``open_source`` and yield the first packets of each track; close it at the end of the block."""
    with open_source() as reader:
        wanted: dict[int, list[Any]] = {stream.index: [] for stream in reader.streams}
        for number, packet in enumerate(reader.demux()):
            if packet.size and len(wanted[packet.stream.index]) < _SAMPLES:
                wanted[packet.stream.index].append(packet)
            enough = all(wanted[stream.index] for stream in reader.streams if stream.type in ("audio", "video"))
            if number > _LOOKED_THROUGH or (number > 20 * len(wanted) and enough):
                break
        yield Samples(tuple(reader.streams), wanted)


def add_tracks(
    reader: Any, writer: Any, main: Any, add_pictures: Callable[[], Any], found: Samples, *, source: Path, target: Path
) -> dict[int, Track]:
    """Add the streams of an output in the order of the source, and warn about what is converted or left out.

    Args:
        reader: the opened source.
        writer: the output container.
        main: the stream that is upscaled.
        add_pictures: adds the stream of the upscaled frames to ``writer`` and returns it.
        found: samples of the same source.
        source: the source, for messages.
        target: the output, whose suffix gives the container.

    Returns:
        The track for the packets of each other stream that is kept, by stream index.
    """
    adder = _Adder(reader, writer, main, found, source, target)
    tracks = {}
    for stream in reader.streams:
        if stream.index == main.index:
            describe(add_pictures(), stream)
        elif (track := adder.add(stream)) is not None:
            tracks[stream.index] = track
    adder.add_chapters()
    return tracks


def describe(out: Any, stream: Any) -> None:
    """Copy a stream's metadata: language, title, whether it is the default track, ..."""
    out.metadata.update({key: value for key, value in stream.metadata.items() if not key.upper().startswith(_OUTDATED)})
    out.disposition = int(stream.disposition)


class _Adder:
    def __init__(self, reader: Any, writer: Any, main: Any, found: Samples, source: Path, target: Path) -> None:
        self.reader, self.writer, self.main, self.found = reader, writer, main, found
        self.source, self.target = source, target
        self.kind = TARGETS[target.suffix.lower()]
        self.shift = shift_of(reader)
        self.seen: dict[str, int] = {}

    def add(self, stream: Any) -> Track | None:
        """Add one stream in the way that loses least; return None if its packets are not needed."""
        kind = stream.type
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if kind in ("attachment", "data"):
            (self._attachment if kind == "attachment" else self._data)(stream)
            return None
        if kind == "video" and stream.disposition & 0x400:  # attached_pic
            return self._cover(stream)
        track = self._copied(stream) if kind in ("audio", "subtitle", "video") else None
        if track is None and kind == "audio":
            track = self._encoded_sound(stream)
        if track is None and kind == "subtitle":
            track = self._converted_text(stream)
        if track is not None:
            describe(track.out, stream)
            if kind == "video":
                self._say(stream, f"is copied unchanged; only track {self.main.index} of the file is upscaled.")
        else:
            self._leave_out(stream)
        return track

    def _name(self, stream: Any) -> str:
        codec = stream.codec_context.codec.canonical_name if stream.codec_context else None
        details = ", ".join(filter(None, (codec, stream.metadata.get("language"))))
        number = self.seen.get(stream.type, 0)
        return f"{_KINDS.get(stream.type, stream.type)} track {number}{f' ({details})' if details else ''}"

    def _say(self, stream: Any, text: str) -> None:
        logger.warning("%s: %s %s", self.source, self._name(stream), text)

    def _leave_out(self, stream: Any) -> None:
        why = f"cannot be put into {self.target.suffix}"
        if stream.codec_context is None and stream.type in ("audio", "video", "subtitle"):
            why = "has a format that FFmpeg does not know"
        better = "" if self.kind == "matroska" else " (.mkv holds most kinds)"
        self._say(stream, f"{why}{better if why.startswith('cannot') else ''}; it is left out.")

    def _copied(self, stream: Any) -> Track | None:
        sample = self.found.streams[stream.index]
        if stream.codec_context is None or not _can_copy(self.kind, sample, self.found.packets[stream.index]):
            return None
        return Track(self.writer.add_stream_from_template(stream, opaque=True), self.shift)

    def _encoded_sound(self, stream: Any) -> Track | None:
        context = stream.codec_context
        if context is None or not context.sample_rate or not context.format:
            return None
        lossless, others = _SOUND[self.kind]
        is_lossless = context.codec.lossless and not context.codec.lossy
        for encoder in (*lossless, *others) if is_lossless else others:
            for layout in dict.fromkeys((context.layout.name, "stereo", "mono")):
                if _try_sound(self.kind, encoder, context, layout):
                    out = _sound_encoder(self.writer, encoder, context, layout)
                    mixed = "" if layout == context.layout.name else f", mixed down to {layout}"
                    self._say(
                        stream, f"cannot be copied into {self.target.suffix}; it is encoded again as {encoder}{mixed}."
                    )
                    return Sound(out, self.shift, stream, f"{self.source}: {self._name(stream)}")
        return None

    def _converted_text(self, stream: Any) -> Track | None:
        encoder = _TEXT.get(self.kind)
        context = stream.codec_context
        if encoder is None or context is None or not context.codec.text_sub:
            return None
        try:
            with _memory(self.kind) as trial:
                _text_encoder(trial, encoder, stream)
                trial.start_encoding()
            out = _text_encoder(self.writer, encoder, stream)
        except Exception as error:  # PyAV and FFmpeg raise many types
            logger.debug("%s: %s: %s", self.source, self._name(stream), error)
            return None
        self._say(stream, f"is converted to {encoder}; its styling may change.")
        return Text(out, self.shift, stream, f"{self.source}: {self._name(stream)}")

    def _attachment(self, stream: Any) -> None:
        if self.kind == "matroska":
            kept = {key: value for key, value in stream.metadata.items() if key not in ("filename", "mimetype")}
            mime = stream.mimetype or "application/octet-stream"
            self.writer.add_attachment(stream.name or "attachment", mime, stream.data).metadata.update(kept)
        else:
            name = stream.name or "attachment"
            logger.warning("%s: only .mkv can hold attached files; %s is left out.", self.source, name)

    def _data(self, stream: Any) -> None:
        """Warn that a data track is left out, unless it holds chapters or a time code, which are written separately."""
        is_chapters = stream.name == "bin_data" and stream.frames and stream.frames == len(self.reader.chapters())
        if not is_chapters and "timecode" not in stream.metadata:
            about = stream.metadata.get("handler_name") or stream.name or "of unknown kind"
            self._say(stream, f"({about}) cannot be copied; it is left out.")

    def _cover(self, stream: Any) -> Track | None:
        """Add a cover picture, in Matroska as an attached file, elsewhere as a copied track."""
        packets = self.found.packets[stream.index]
        if self.kind == "matroska" and packets:
            ending = "png" if stream.codec_context.name == "png" else "jpg"
            name = stream.metadata.get("filename") or f"cover.{ending}"
            mime = stream.metadata.get("mimetype") or f"image/{'png' if ending == 'png' else 'jpeg'}"
            self.writer.add_attachment(name, mime, bytes(packets[0]))
            return None
        track = self._copied(stream) if self.kind in ("mp4", "mov", "ipod") else None
        if track is None:
            logger.warning(
                "%s: its cover picture cannot be put into %s; it is left out.", self.source, self.target.suffix
            )
        else:
            describe(track.out, stream)
        return track

    def add_chapters(self) -> None:
        """Copy the chapters, shifted like all other times."""
        chapters = self.reader.chapters()
        if chapters and self.kind == "mpegts":
            logger.warning("%s: .ts cannot hold chapters; its %d chapters are left out.", self.source, len(chapters))
        elif chapters:
            for chapter in chapters:
                moved = round(self.shift / chapter["time_base"])
                chapter["start"], chapter["end"] = max(chapter["start"] + moved, 0), max(chapter["end"] + moved, 0)
            self.writer.set_chapters(chapters)


def shift_of(reader: Any) -> Fraction:
    """Return the seconds to add to all times of a film so that it begins at zero; broadcasts begin at any time."""
    return Fraction(-max(reader.start_time or 0, 0), 1_000_000)


@contextlib.contextmanager
def _memory(kind: str) -> Iterator[Any]:
    import av

    with av.open(io.BytesIO(), "w", format=kind) as writer:
        yield writer


def _can_copy(kind: str, stream: Any, packets: Sequence[Any]) -> bool:
    """Return whether a container can hold a track; write its first packets in memory to find out."""
    if kind == "mpegts" and stream.codec_context.codec.canonical_name not in _IN_TRANSPORT_STREAM:
        return False
    if stream.type == "subtitle" and kind != "matroska" and stream.codec_context.codec.bitmap_sub:
        return kind == "mpegts"
    try:
        with _memory(kind) as writer:
            track = Track(writer.add_stream_from_template(stream, opaque=True), Fraction(0))
            track.out.disposition = int(stream.disposition)
            writer.start_encoding()
            for packet in packets:
                writer.mux(track.feed(packet))
    except Exception as error:  # PyAV raises ValueError, FFmpeg many kinds of FFmpegError
        logger.debug("track %d cannot be copied into %s: %s", stream.index, kind, error)
        return False
    return True


def _sound_encoder(writer: Any, name: str, source: Any, layout: str) -> Any:
    """Add and open an audio encoder whose rate and sample format are as close to the source as possible."""
    import av

    codec = av.codec.Codec(name, "w")
    rates = [int(rate) for rate in codec.audio_rates or ()]
    rate = source.sample_rate
    if rates and rate not in rates:
        rate = min((known for known in rates if known >= rate), default=max(rates))
    out = writer.add_stream(name, rate=rate)
    context = out.codec_context
    context.layout = layout
    context.format = _sample_format([known.name for known in codec.audio_formats or ()], source.format)
    if name not in ("flac", "alac"):
        context.bit_rate = _BITS_PER_CHANNEL * context.layout.nb_channels
    context.time_base = Fraction(1, rate)
    context.open()
    return out


def _sample_format(known: list[str], source: Any) -> str:
    """Return the encoder's 32-bit integer format for sources above 16 bits (except doubles), else its first format."""
    deep = next((name for name in known if name.startswith("s32")), None)
    return deep if deep and source.bytes > 2 and not source.name.startswith("dbl") else known[0]


def _try_sound(kind: str, encoder: str, source: Any, layout: str) -> bool:
    """Return whether an encoder accepts the rate and layout, and the container its output."""
    try:
        with _memory(kind) as writer:
            _sound_encoder(writer, encoder, source, layout)
            writer.start_encoding()
    except Exception as error:  # as above
        logger.debug("%s in %s: %s", encoder, kind, error)
        return False
    return True


def _text_encoder(writer: Any, name: str, source: Any) -> Any:
    source.codec_context.open(strict=False)
    out = writer.add_stream(name)
    out.time_base = Fraction(1, 1000)
    out.codec_context.time_base = Fraction(1, 1000)
    out.codec_context.subtitle_header = source.codec_context.subtitle_header
    out.codec_context.open()
    return out
