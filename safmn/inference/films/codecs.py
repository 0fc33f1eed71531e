"""Choose and configure the encoder of a film's frames: codec, quality and pixel format."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from safmn.errors import DataError, OptionError, UserError, did_you_mean, first_line
from safmn.inference.choices import DEINTERLACE
from safmn.inference.films.kinds import TARGETS

_NAMES = {
    **{"h264": "libx264", "avc": "libx264", "x264": "libx264", "hevc": "libx265", "h265": "libx265", "x265": "libx265"},
    **{"av1": "libsvtav1", "vp9": "libvpx-vp9", "vp8": "libvpx", "prores": "prores_ks", "mpeg2": "mpeg2video"},
}
_REORDERED = 2  # frames by which x265 shows frames later than it decodes them
_SUGGESTED = ("h264", "hevc", "av1", "vp9", "vp8", "prores", "ffv1")
_IN_TRANSPORT_STREAM = (
    "h264",
    "hevc",
    "mpeg2video",
    "mpeg1video",
    "mpeg4",
)  # FFmpeg also writes other codecs, but no program reads them
_8_BITS = ("yuv420p", "nv12", "yuv422p", "yuv444p", "gbrp", "rgb24", "bgr0", "bgra")
_10_BITS = ("yuv420p10le", "p010le", "yuv422p10le", "yuv444p10le", "gbrp10le", "yuv420p12le", "x2rgb10le")
_ODD_WITH_420 = ("libvpx-vp9", "libvpx", "libaom-av1", "ffv1")  # other encoders need even sides with subsampled chroma


@dataclass(frozen=True)
class FilmOptions:
    """How films are encoded.

    Attributes:
        codec: h264, hevc, av1, vp9, prores, ffv1, or the name of one of FFmpeg's encoders, including hardware encoders
            (h264_nvenc, hevc_videotoolbox, h264_qsv, h264_vaapi, ...). None chooses VP9 for .webm; otherwise H.264, or
            HEVC for more than 8 bits.
        crf: quality on the encoder's own scale, where lower is better; None gives visually lossless quality.
        preset: the encoder's setting for speed against size; None keeps the default.
        pix_fmt: FFmpeg's name of the pixel format, such as yuv420p10le; None chooses one that suits encoder and film.
        deinterlace: which frames to deinterlace: "auto" (those marked as interlaced), "all" or "off".

    Raises:
        OptionError: ``deinterlace`` has another value.
    """

    codec: str | None = None
    crf: float | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    deinterlace: str = "auto"

    def __post_init__(self) -> None:
        if self.deinterlace not in DEINTERLACE:
            raise OptionError(f"deinterlace {self.deinterlace!r}: choose {', '.join(DEINTERLACE)}")


@dataclass(frozen=True)
class _Scale:
    """The quality settings of an encoder.

    Attributes:
        options: the options that set the quality, with ``{}`` for the value. ``{percent}`` and ``{lambda}`` convert it
            to other scales.
        default: the value if the user gives none.
        most: the largest allowed value; the smallest is 0.
        preset: the option that trades speed for size; empty if there is none.
        others: other options that are set; a user's preset replaces its default here.
    """

    options: dict[str, str] = field(default_factory=dict)
    default: float | None = None
    most: float = 51
    preset: str = ""
    others: dict[str, str] = field(default_factory=dict)


_ENCODERS = {
    "libx264": _Scale({"crf": "{}"}, 15, preset="preset", others={"preset": "medium"}),
    "libx264rgb": _Scale({"crf": "{}"}, 15, preset="preset", others={"preset": "medium"}),
    "libx265": _Scale(
        {"crf": "{}"}, 16, preset="preset", others={"preset": "medium", "x265-params": "log-level=error"}
    ),
    "libvpx-vp9": _Scale({"crf": "{}", "b": "0"}, 20, 63, "cpu-used", {"row-mt": "1", "cpu-used": "4"}),
    "libvpx": _Scale({"crf": "{}", "b": "20M"}, 8, 63, "cpu-used", {"cpu-used": "4"}),
    "libaom-av1": _Scale({"crf": "{}", "b": "0"}, 18, 63, "cpu-used", {"cpu-used": "6", "row-mt": "1"}),
    "libsvtav1": _Scale({"crf": "{}"}, 20, 63, "preset", {"preset": "6"}),
    "mpeg4": _Scale({"qmin": "{}", "qmax": "{}"}, 2, 31),
    "mpeg2video": _Scale({"qmin": "{}", "qmax": "{}"}, 2, 31),
    "mjpeg": _Scale({"qmin": "{}", "qmax": "{}"}, 2, 31),
}
_HARDWARE = {
    "nvenc": _Scale({"rc": "vbr", "cq": "{}", "b": "0"}, 18, preset="preset", others={"preset": "p5"}),
    "qsv": _Scale({"global_quality": "{}"}, 18, preset="preset"),
    "vaapi": _Scale({"rc_mode": "CQP", "qp": "{}"}, 18),
    "amf": _Scale({"rc": "cqp", "qp_i": "{}", "qp_p": "{}"}, 18, preset="quality"),
    "vulkan": _Scale({"rc_mode": "cqp", "qp": "{}"}, 18),
    "mf": _Scale({"rate_control": "quality", "quality": "{percent}"}, 18),
    "videotoolbox": _Scale({"global_quality": "{lambda}", "flags": "+qscale"}, 18),
}


def _scale(encoder: str) -> _Scale:
    return _ENCODERS.get(encoder) or _HARDWARE.get(encoder.rpartition("_")[2], _Scale())


@dataclass(frozen=True)
class Encoder:
    """A configured encoder, not yet opened.

    Attributes:
        name: FFmpeg's name.
        options: the encoder's private options.
        pix_fmt: the pixel format of its input.
        pad: whether frames must be padded to even sides.
    """

    name: str
    options: dict[str, str]
    pix_fmt: str
    pad: bool = False

    @property
    def bits(self) -> int:
        """Bits per sample of the pixel format."""
        return max(part.bits for part in _av().VideoFormat(self.pix_fmt).components)

    def add_to(self, writer: Any, rate: Fraction | int, width: int, height: int) -> Any:
        """Add a stream with this encoder to an output container; return the stream, not yet opened."""
        av = _av()
        more = {}
        if self.name.endswith("_vaapi"):  # takes frames in device memory
            more["hwaccel"] = av.codec.hwaccel.HWAccel("vaapi")
        stream = writer.add_stream(self.name, rate=rate, options=dict(self.options), **more)
        stream.width, stream.height, stream.pix_fmt = width, height, self.pix_fmt
        if _codec(self.name).canonical_name == "hevc" and writer.format.name in ("mp4", "mov", "ipod"):
            stream.codec_context.codec_tag = "hvc1"  # Apple's players require this tag
        return stream


def with_decoding_times(packets: list[Any], encoder: str, frames: int) -> list[Any]:
    """Return the last packets of a film with decoding times that can be written.

    x265 takes the decoding times from a table of the first frames that is longer than a film of one or two frames, and
    what stands there is random. So few frames are decoded in the order in which they are shown.

    Args:
        packets: the packets that an encoder returns at the end.
        encoder: its name.
        frames: how many frames the film has.
    """
    if encoder == "libx265" and frames <= _REORDERED:
        for packet in packets:
            packet.dts = packet.pts
    return packets


def _av() -> Any:
    import av

    return av


def choose(options: FilmOptions, suffix: str, *, deep: bool = False, odd: bool = False) -> Encoder:
    """Return the encoder for a film.

    Args:
        options: the user's options.
        suffix: suffix of the output.
        deep: whether the frames have more than 8 bits.
        odd: whether the output has an odd width or height.

    Raises:
        OptionError: the encoder does not exist, or does not support the pixel format, the quality or the preset.
    """
    default = "libvpx-vp9" if suffix.lower() == ".webm" else "libx265" if deep else "libx264"
    name = _NAMES.get(options.codec or default, options.codec or default)
    codec = _codec(name)
    formats = [known.name for known in codec.video_formats or ()]
    pix_fmt = options.pix_fmt or _pixel_format(formats, deep, odd)
    if formats and pix_fmt not in formats:
        raise OptionError(f"--pix-fmt {pix_fmt}: the encoder {name} supports {', '.join(formats)}")
    halved = _is_halved(pix_fmt)
    return Encoder(name, _private(name, options), pix_fmt, odd and halved and name not in _ODD_WITH_420)


def _codec(name: str) -> Any:
    av = _av()
    try:
        codec = av.codec.Codec(name, "w")
    except ValueError:
        known = [*_NAMES, *(other for other in av.codecs_available)]
        raise OptionError(f"--codec {name}: PyAV has no such encoder.{did_you_mean(name, known)}") from None
    if codec.type != "video":
        raise OptionError(f"--codec {name}: this encodes {codec.type}, not video")
    return codec


def _pixel_format(formats: list[str], deep: bool, odd: bool) -> str:
    wanted: tuple[str, ...] = (*_10_BITS, *_8_BITS) if deep else (*_8_BITS, *_10_BITS)
    if odd:
        wanted = (*(name for name in wanted if not _is_halved(name)), *wanted)
    return next((name for name in wanted if name in formats), formats[0] if formats else wanted[0])


def _is_halved(pix_fmt: str) -> bool:
    """Return whether a pixel format has subsampled chroma, in one direction or both."""
    try:
        video_format = _av().VideoFormat(pix_fmt, 16, 16)
    except ValueError:
        raise OptionError(f"--pix-fmt {pix_fmt}: FFmpeg has no such pixel format") from None
    return not video_format.is_rgb and (video_format.chroma_width() < 16 or video_format.chroma_height() < 16)


def _private(name: str, options: FilmOptions) -> dict[str, str]:
    scale = _scale(name)
    private = dict(scale.others)
    quality = scale.default if options.crf is None else options.crf
    if options.crf is not None and not scale.options:
        raise OptionError(f"--crf: the encoder {name} has no such setting; leave it out")
    if quality is not None:
        if not 0 <= quality <= scale.most:
            raise OptionError(f"--crf {quality:g}: {name} takes 0 to {scale.most:g}, lower is better")
        percent = round(100 - quality * 100 / 51)
        values = {"percent": max(percent, 1), "lambda": 118 * max(percent, 1)}
        private.update({key: text.format(f"{quality:g}", **values) for key, text in scale.options.items()})
    if options.preset is not None:
        if not scale.preset:
            raise OptionError(f"--preset: the encoder {name} has no presets; leave it out")
        private[scale.preset] = options.preset
    return private


def check(options: FilmOptions, suffix: str) -> None:
    """Check, before any work is done, that the encoder and the container work: write a small frame into memory.

    Raises:
        OptionError: the container cannot hold the codec, or the encoder cannot be opened on this machine. The message
            suggests alternatives.
    """
    encoder = choose(options, suffix)
    canonical = _codec(encoder.name).canonical_name
    if not holds(suffix, encoder.name):
        able = [
            name for name in _SUGGESTED if name in _av().codecs_available or _NAMES.get(name) in _av().codecs_available
        ]
        able = [name for name in able if holds(suffix, _NAMES.get(name, name))]
        raise OptionError(
            f"--codec {options.codec}: {suffix} cannot hold {canonical} video; choose {', '.join(able)}, or another "
            f"container with -o NAME.mkv"
        )
    try:
        with in_memory(TARGETS[suffix.lower()]) as writer:
            stream = encoder.add_to(writer, 25, 256, 256)
            frame = _av().VideoFrame.from_ndarray(np.zeros((256, 256, 3), np.uint8)).reformat(format=encoder.pix_fmt)
            frame.pts, frame.time_base = 0, Fraction(1, 25)
            stream.codec_context.time_base = Fraction(1, 25)
            stream.codec_context.open()
            writer.start_encoding()
            stream.encode(frame)
            stream.encode(None)
    except UserError:
        raise
    except Exception as error:  # drivers and encoders raise many types
        asked = ", ".join(
            f"{key} {value}" for key, value in {"--crf": options.crf, "--preset": options.preset}.items() if value
        )
        raise OptionError(
            f"--codec {encoder.name}: the encoder cannot be opened{' with ' + asked if asked else ''} (pixel format "
            f"{encoder.pix_fmt}: {first_line(error)}); a hardware encoder needs its device and driver. Choose "
            f"another, such as h264"
        ) from error


def holds(suffix: str, encoder: str) -> bool:
    """Return whether a container (by its suffix) can hold the output of an encoder."""
    if suffix.lower() == ".ts":
        return _codec(encoder).canonical_name in _IN_TRANSPORT_STREAM
    try:
        with in_memory(TARGETS[suffix.lower()]) as writer:
            writer.add_stream(encoder, rate=25)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def in_memory(kind: str) -> Any:
    """Yield an output container in memory, of FFmpeg's format ``kind``; its content is discarded."""
    with _av().open(io.BytesIO(), "w", format=kind) as writer:
        yield writer


def no_encoder(name: str, where: object, error: Exception) -> DataError:
    """Return the error for a film whose frames an encoder does not accept; ``where`` is the film."""
    return DataError(f"{where}: the encoder {name} does not accept its frames ({first_line(error)})")
