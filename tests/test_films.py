"""Films: colours, pixel shape, times, other tracks, damage, and codecs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from repeater import repeated
from skimage import data

from safmn.errors import DataError, OptionError
from safmn.inference.file_jobs import plan
from safmn.inference.films import codecs as film_codecs
from safmn.inference.films.codecs import FilmOptions
from safmn.inference.films.kinds import is_film
from safmn.inference.films.video import probe, upscale_video

av: Any = pytest.importorskip("av")
Array = np.ndarray[Any, np.dtype[Any]]


def photo() -> Array:
    """Return an image with strong colours, uint8 (32, 48, 3)."""
    image = cv2.resize(data.astronaut(), (48, 32), interpolation=cv2.INTER_AREA)
    image[:16, :24] = (220, 40, 30)
    return np.ascontiguousarray(image)


def write_film(
    path: Path,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    *,
    matrix: int = 2,
    aspect: Fraction | None = None,
    frames: int = 4,
) -> None:
    """Write a film of equal frames at 10 frames per second; ``matrix`` as in H.273."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, pix_fmt
        stream.codec_context.colorspace = matrix
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(photo(), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix if matrix in (1, 9) else None)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def first_frame(path: Path) -> Any:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "matrix", "written"),
    [
        ("a.mov", "png", "rgb24", 0, 1),
        ("a.mkv", "libx264rgb", "rgb24", 0, 1),
        ("a.mp4", "libx264", "yuv420p", 1, 1),
        ("a.mp4", "libx264", "yuv420p", 2, 2),
        ("a.mp4", "libx264", "yuv420p10le", 9, 9),
    ],
)
def test_output_states_the_matrix_it_uses(
    name: str, codec: str, pix_fmt: str, matrix: int, written: int, tmp_path: Path
) -> None:
    """The output states the expected matrix, and its colours are those of the source."""
    write_film(tmp_path / name, codec, pix_fmt, matrix=matrix)
    before = first_frame(tmp_path / name)
    assert int(before.colorspace) == matrix
    upscale_video(tmp_path / name, tmp_path / f"larger {name}", repeated)
    after = first_frame(tmp_path / f"larger {name}")
    assert int(after.colorspace) == written
    corner = (slice(4, 12), slice(4, 20))  # has a single colour
    colour = after.to_ndarray(format="rgb24")[8:24, 8:40].mean((0, 1))
    assert np.allclose(colour, before.to_ndarray(format="rgb24")[corner].mean((0, 1)), atol=4)


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_keep_their_shape(turned: bool, tmp_path: Path) -> None:
    """The pixel aspect ratio is kept, and inverted if the film is rotated by a quarter turn."""
    write_film(tmp_path / "a.mp4", aspect=Fraction(16, 11))
    if turned:
        rotate_film(tmp_path / "a.mp4")
    upscale_video(tmp_path / "a.mp4", tmp_path / "b.mp4", repeated)
    with av.open(str(tmp_path / "b.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == (Fraction(11, 16) if turned else Fraction(16, 11))
        assert (stream.width, stream.height) == ((64, 96) if turned else (96, 64))


def test_films_do_not_get_darker(tmp_path: Path) -> None:
    if not hasattr(av.video.reformatter.Interpolation, "ACCURATE_RND"):
        pytest.skip("this release of PyAV has only the fast conversion, which darkens")
    write_film(tmp_path / "in.mkv", "ffv1")
    frames = []

    def upscale(image: Array) -> Array:
        frames.append(image)
        return repeated(image)

    upscale_video(tmp_path / "in.mkv", tmp_path / "out.mp4", upscale)
    assert np.abs(np.mean(frames, axis=(0, 1, 2)) - photo().mean(axis=(0, 1))).max() < 0.6


def rotate_film(path: Path) -> None:
    """Set the matrix in the track header of an MP4 file to a quarter turn (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # after the type, version and flags, times, reserved, layer
    one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
    assert content[place : place + 4] == one
    content[place : place + 20] = zero + one + zero + (-(1 << 16)).to_bytes(4, "big", signed=True) + zero
    path.write_bytes(content)


def test_a_film_cut_before_its_first_frame(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mkv")
    content = (tmp_path / "a.mkv").read_bytes()
    start = content.index(b"\x1f\x43\xb6\x75")  # the first cluster of Matroska
    (tmp_path / "cut.mkv").write_bytes(content[: start + 40])
    readers: list[Callable[[], object]] = [
        lambda: probe(tmp_path / "cut.mkv"),
        lambda: upscale_video(tmp_path / "cut.mkv", tmp_path / "b.mkv", repeated),
    ]
    for read in readers:
        with pytest.raises(DataError, match=r"cut\.mkv: .*cannot be decoded"):
            read()
    assert not (tmp_path / "b.mkv").exists()


# Films that earlier versions converted incorrectly


@pytest.fixture(scope="module")
def cases() -> Path:
    shared = Path(os.environ.get("SAFMN_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    folder = shared / "data/cases"
    if not folder.is_dir():
        pytest.skip(f"no shared test data at {folder} (set SAFMN_SHARED)")
    return folder


def times(path: Path, kind: str = "video") -> list[float]:
    """Return the times, in seconds, of all frames of the first track of a kind."""
    with av.open(str(path)) as container:
        base = getattr(container.streams, kind)[0].time_base
        return [float(frame.pts * base) for frame in container.decode(**{kind: 0}) if frame.pts is not None]


def streams(path: Path, kind: str) -> list[tuple[str | None, str | None, int]]:
    """Return codec, language and disposition of each track of a kind."""
    with av.open(str(path)) as container:
        return [
            (
                stream.codec_context and stream.codec_context.name,
                stream.metadata.get("language"),
                int(stream.disposition),
            )
            for stream in container.streams
            if stream.type == kind
        ]


@pytest.mark.parametrize(
    ("name", "target", "sound", "said"),
    [
        ("wma.wmv", "a.mkv", ["opus"], "track 1 (wmav2) cannot be copied into .mkv"),
        ("lpcm.mpg", "a.mkv", ["flac"], "track 1 (pcm_dvd) cannot be copied into .mkv"),
        ("lpcm.mpg", "a.mp4", ["aac"], "encoded again as aac"),
        ("iphone.mov", "a.mov", ["aac"], "sound track 2 has a format that FFmpeg does not know"),
        ("multi.mp4", "a.mp4", ["aac", "aac"], ""),
        ("vfr.mkv", "a.mkv", ["aac"], ""),
        ("late_video.mkv", "a.mkv", ["aac"], ""),
        ("late_video.mkv", "a.mp4", ["aac"], ""),
        ("cutlist.mp4", "a.mp4", ["aac"], ""),
    ],
)
def test_whole_films(
    name: str, target: str, sound: list[str], said: str, cases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Frame times and the offset to the sound are kept; only a converted or dropped track causes a warning."""
    written = upscale_video(cases / name, tmp_path / target, repeated)
    assert written.damage is None
    before, after = times(cases / name), times(tmp_path / target)
    assert len(after) == written.frames == len(before)
    assert np.allclose(np.diff(after), np.diff(before), atol=2e-3)
    lead = before[0] - times(cases / name, "audio")[0]
    assert after[0] - times(tmp_path / target, "audio")[0] == pytest.approx(lead, abs=0.03)  # within a frame
    assert [str(codec).removeprefix("lib") for codec, _, _ in streams(tmp_path / target, "audio")] == sound
    assert said in caplog.text
    assert bool(said) == bool(caplog.records)


def test_the_number_of_frames_excludes_those_cut_by_an_edit_list(cases: Path) -> None:
    assert probe(cases / "cutlist.mp4").frames == 37


def test_languages_and_chapters_are_kept(cases: Path, tmp_path: Path) -> None:
    for target in ("a.mp4", "a.mkv"):
        upscale_video(cases / "multi.mp4", tmp_path / target, repeated)
        assert [language for _, language, _ in streams(tmp_path / target, "audio")] == ["jpn", "eng"]
        assert [disposition for *_, disposition in streams(tmp_path / target, "audio")] == [1, 0]
        with av.open(str(tmp_path / target)) as container:
            found = [(c["metadata"]["title"], float(c["start"] * c["time_base"])) for c in container.chapters()]
        assert found == [("One", 0.0), ("Two", 0.5)]


def combs(frame: Array) -> float:
    """Return by what factor neighbouring rows differ more than neighbouring rows of one field."""
    rows = frame.astype(float)
    return float(np.abs(rows[1:-1] - rows[:-2]).mean() / max(np.abs(rows[2:] - rows[:-2]).mean(), 1e-9))


@pytest.mark.parametrize("deinterlace", ["auto", "off"])
def test_interlaced_frames(deinterlace: str, cases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Frames are deinterlaced unless the user opts out; there is one warning either way, and the times are kept."""
    frames: list[Array] = []

    def upscale(image: Array) -> Array:
        frames.append(image)
        return repeated(image)

    options = FilmOptions(deinterlace=deinterlace)
    written = upscale_video(cases / "inter.mkv", tmp_path / "a.mkv", upscale, options=options)
    assert written.frames == 12
    assert np.allclose(times(tmp_path / "a.mkv"), times(cases / "inter.mkv"), atol=1e-3)
    with av.open(str(cases / "inter.mkv")) as container:
        originals = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    ratio = np.mean([combs(frame) for frame in frames]) / np.mean([combs(frame) for frame in originals])
    assert (ratio < 0.8) == (deinterlace == "auto")
    assert caplog.text.count("deinterlaces them" if deinterlace == "auto" else "interlaced and stay so") == 1
    assert not first_frame(tmp_path / "a.mkv").interlaced_frame


# Other tracks and tags


def write_rich_film(path: Path) -> None:
    """Write a Matroska film with two sound tracks (one lossless), subtitles, attachments, a chapter and tags."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 48, 32, "yuv420p"
        sounds = [container.add_stream(codec, rate=48000, layout="stereo") for codec in ("aac", "flac")]
        for sound, language in zip(sounds, ("ger", "eng"), strict=True):
            sound.metadata.update(language=language, title=f"in {language}")
        sounds[1].disposition = av.stream.Disposition.comment
        text = container.add_stream("subrip")
        text.time_base = text.codec_context.time_base = Fraction(1, 1000)
        text.codec_context.subtitle_header = b"[Script Info]\r\n\r\n[Events]\r\nFormat: Text\r\n"
        text.metadata["language"] = "fre"
        text.disposition = av.stream.Disposition.forced
        container.add_attachment("font.ttf", "font/ttf", bytes(100))
        container.add_attachment("cover.jpg", "image/jpeg", cv2.imencode(".jpg", photo())[1].tobytes())
        container.metadata["title"] = "A film"
        chapter = {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}
        container.set_chapters([chapter])
        for index in range(6):
            frame = av.VideoFrame.from_ndarray(photo(), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        for sound in sounds:
            for start in range(0, 28800, 960):
                tone = np.sin(np.arange(start, start + 960) / 10).astype(np.float32) * 0.3
                floats = sound.codec_context.name == "aac"
                samples = np.stack([tone, tone]) if floats else (np.repeat(tone, 2)[None] * 30000).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(samples, format="fltp" if floats else "s16", layout="stereo")
                frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        packet = av.Packet(b"Hello")
        packet.stream, packet.time_base = text, Fraction(1, 1000)
        packet.pts = packet.dts = 100
        packet.duration = 300
        container.mux(packet)
        container.mux(pictures.encode(None))


@pytest.mark.parametrize(
    ("target", "sounds", "texts", "lost"),
    [
        ("b.mkv", ["aac", "flac"], ["srt"], []),
        ("b.mp4", ["aac", "flac"], ["mov_text"], ["font.ttf"]),
        ("b.webm", ["opus", "opus"], ["webvtt"], ["font.ttf", "cover"]),
        ("b.ts", ["aac", "aac"], [], ["font.ttf", "cover", "subtitle track 1", "chapters"]),
    ],
)
def test_each_track_is_kept_or_converted_or_reported_as_left_out(
    target: str, sounds: list[str], texts: list[str], lost: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rich_film(tmp_path / "a.mkv")
    upscale_video(tmp_path / "a.mkv", tmp_path / target, repeated)
    result = tmp_path / target
    names = {"libopus": "opus", "subrip": "srt"}
    assert [names.get(str(codec), codec) for codec, _, _ in streams(result, "audio")] == sounds
    assert [language for _, language, _ in streams(result, "audio")] == ["ger", "eng"]
    assert [names.get(str(codec), codec) for codec, _, _ in streams(result, "subtitle")] == texts
    assert all(language == "fre" for _, language, _ in streams(result, "subtitle"))
    gone = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(gone) == len(lost)
    assert all(any(word in line for line in gone) for word in lost)
    with av.open(str(result)) as container:
        assert len(container.chapters()) == (target != "b.ts")
        if target != "b.ts":
            assert container.metadata["title"] == "A film"
        covers = [stream for stream in container.streams.video if stream.disposition & 0x400]
        assert len(covers) == (target in ("b.mkv", "b.mp4"))
        if texts:
            assert b"Hello" in b"".join(bytes(packet) for packet in container.demux(subtitles=0))


def test_lossless_sound_has_the_same_samples_after_conversion(cases: Path, tmp_path: Path) -> None:
    def samples(path: Path) -> Array:
        with av.open(str(path)) as container:
            parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate([part.reshape(-1) for part in parts])

    upscale_video(cases / "lpcm.mpg", tmp_path / "a.mkv", repeated)
    before, after = samples(cases / "lpcm.mpg"), samples(tmp_path / "a.mkv")
    assert before.dtype == after.dtype
    assert np.array_equal(before, after)


# Which files are opened


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile a.mkv\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mkv\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "const a: number = 1;\n",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_playlists_are_refused(text: str, suffix: str, tmp_path: Path) -> None:
    """A text file with a film's suffix is refused, even if it is a playlist of a film that exists."""
    write_film(tmp_path / "a.mkv")
    (tmp_path / f"film{suffix}").write_text(text)
    with pytest.raises(DataError, match=r"film\.\w+: .*playlists"):
        upscale_video(tmp_path / f"film{suffix}", tmp_path / "b.mkv", repeated)
    assert not (tmp_path / "b.mkv").exists()


def test_films_are_recognised_by_suffix_and_content(tmp_path: Path) -> None:
    """The content decides for the ambiguous suffix .ts, and for the unknown suffix .bin if the file was named."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("A.MTS", "b.ts", "c.M2TS"):
        write_film(folder / "film.ts")
        (folder / "film.ts").rename(folder / name)
    write_film(folder / "d.3gp.mp4")
    (folder / "d.3gp.mp4").rename(folder / "d.3gp")
    write_film(folder / "e.mkv")
    (folder / "e.mkv").rename(folder / "e.bin")
    (folder / "code.ts").write_text("export const a = 1;\n" * 100)
    planned = plan([str(folder)], tmp_path / "out")
    assert sorted(job.target.name for job in planned.jobs) == ["A.mkv", "b.ts", "c.mkv", "d.mkv"]
    assert all(job.is_film for job in planned.jobs)
    assert sorted(path.name for path in planned.ignored) == ["code.ts", "e.bin"]
    assert is_film(folder / "e.bin", named=True)
    assert not is_film(folder / "e.bin", named=False)
    assert plan([str(folder / "e.bin")], tmp_path / "out").jobs[0].is_film


def test_file_names_that_look_like_protocols_or_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_film(Path("a.mkv"))
    Path("a.mkv").rename("part:1 %d.mkv")
    upscale_video("part:1 %d.mkv", "out:1 %d.mkv", repeated)
    assert Path("out:1 %d.mkv").is_file()


# Damage


@pytest.mark.parametrize("name", ["vfr.mkv", "late_video.mkv"])
def test_the_damage_of_a_cut_film_is_reported(name: str, cases: Path, tmp_path: Path) -> None:
    content = (cases / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 6 // 10])
    written = upscale_video(tmp_path / name, tmp_path / "b.mkv", repeated)
    assert written.damage is not None
    assert "cut or damaged" in written.damage
    assert 0 < written.frames < len(times(cases / name))


def test_the_damage_of_a_cut_film_with_its_header_first_is_reported(tmp_path: Path) -> None:
    """The header states 10 packets, so the damage says how many of them were read."""
    write_film(tmp_path / "a.mov", "png", "rgb24", frames=10)
    with (
        av.open(str(tmp_path / "a.mov")) as before,
        av.open(str(tmp_path / "head.mov"), "w", options={"movflags": "faststart"}) as after,
    ):
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream = stream
                after.mux(packet)
    content = (tmp_path / "head.mov").read_bytes()
    (tmp_path / "cut.mov").write_bytes(content[: len(content) * 7 // 10])
    whole = upscale_video(tmp_path / "head.mov", tmp_path / "whole.mkv", repeated)
    assert (whole.frames, whole.damage) == (10, None)
    written = upscale_video(tmp_path / "cut.mov", tmp_path / "b.mkv", repeated)
    assert written.damage is not None
    assert "of 10 video packets" in written.damage


# Encoding


@pytest.mark.parametrize(
    ("options", "target", "codec", "pix_fmt"),
    [
        (FilmOptions(), "b.mp4", "h264", "yuv420p"),
        (FilmOptions(codec="hevc", crf=20, preset="ultrafast"), "b.mp4", "hevc", "yuv420p"),
        (FilmOptions(codec="libx264", pix_fmt="yuv420p10le"), "b.mkv", "h264", "yuv420p10le"),
        (FilmOptions(codec="ffv1", pix_fmt="yuv444p"), "b.mkv", "ffv1", "yuv444p"),
        (FilmOptions(codec="prores"), "b.mov", "prores", "yuv422p10le"),
        (FilmOptions(), "b.webm", "vp9", "yuv420p"),
    ],
)
def test_codecs(options: FilmOptions, target: str, codec: str, pix_fmt: str, tmp_path: Path) -> None:
    """The output has the requested codec and pixel format, and the colours of the source."""
    write_film(tmp_path / "a.mkv", "ffv1", "yuv444p", matrix=1)
    film_codecs.check(options, Path(target).suffix)
    upscale_video(tmp_path / "a.mkv", tmp_path / target, repeated, options=options)
    with av.open(str(tmp_path / target)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == codec
        assert stream.pix_fmt == pix_fmt
    ours = first_frame(tmp_path / target).to_ndarray(format="rgb24")[8:24, 8:40].mean((0, 1))
    assert np.allclose(ours, (220, 40, 30), atol=5)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_film_of_few_frames_can_be_written_as_hevc(frames: int, tmp_path: Path) -> None:
    """Without more frames, x265's decoding times are random."""
    write_film(tmp_path / "a.mkv", "ffv1", frames=frames)
    for _ in range(3):
        upscale_video(tmp_path / "a.mkv", tmp_path / "b.mp4", repeated, options=FilmOptions(codec="hevc"))
        with av.open(str(tmp_path / "b.mp4")) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        assert len(packets) == frames
        shown = sorted(float(packet.pts * packet.time_base) for packet in packets)
        assert np.allclose(np.diff(shown), 0.1)
        assert all(abs(packet.pts - packet.dts) * packet.time_base < 1 for packet in packets)


@pytest.mark.parametrize(
    ("options", "suffix", "match"),
    [
        (FilmOptions(codec="h264"), ".webm", r"\.webm cannot hold h264 .*choose av1, vp9"),
        (FilmOptions(codec="prores"), ".mp4", "cannot hold prores"),
        (FilmOptions(codec="vp9"), ".ts", r"\.ts cannot hold vp9"),
        (FilmOptions(codec="h246"), ".mp4", "no such encoder.*Did you mean"),
        (FilmOptions(codec="aac"), ".mp4", "encodes audio"),
        (FilmOptions(codec="h264", crf=60), ".mp4", "0 to 51"),
        (FilmOptions(codec="ffv1", crf=10), ".mkv", "no such setting"),
        (FilmOptions(codec="h264", preset="quick"), ".mp4", "preset quick"),
        (FilmOptions(codec="h264", pix_fmt="yuva420p"), ".mp4", "pix-fmt yuva420p.*libx264.*yuv420p"),
        (FilmOptions(pix_fmt="yuv999"), ".mp4", "pix-fmt yuv999"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_advance(options: FilmOptions, suffix: str, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        film_codecs.check(options, suffix)


def test_a_hardware_encoder_without_its_device_is_refused() -> None:
    if "h264_v4l2m2m" not in av.codecs_available or list(Path("/dev").glob("video*")):
        pytest.skip("this PyAV has no such encoder, or this machine has its device")
    with pytest.raises(OptionError, match=r"h264_v4l2m2m: .*cannot be opened.*driver"):
        film_codecs.check(FilmOptions(codec="h264_v4l2m2m"), ".mp4")


@pytest.mark.parametrize("full", [False, True])
def test_ten_bits_are_kept(full: bool, tmp_path: Path) -> None:
    """Patches of one colour, including black and white, change by at most one 10-bit level."""
    colours = np.random.RandomState(0).randint(0, 65536, (2, 3, 3)).astype(np.uint16)
    colours[0, 0], colours[0, 1] = 0, 65280
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p10le"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 2 if full else 1
        frame = av.VideoFrame.from_ndarray(colours.repeat(16, axis=0).repeat(16, axis=1), format="rgb48le")
        interpolation = av.video.reformatter.Interpolation.BICUBIC
        frame = frame.reformat(
            format="yuv420p10le", dst_colorspace=1, dst_color_range=2 if full else 1, interpolation=interpolation
        )
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    upscale_video(tmp_path / "a.mkv", tmp_path / "b.mkv", repeated, options=FilmOptions(codec="ffv1"))
    before, after = first_frame(tmp_path / "a.mkv"), first_frame(tmp_path / "b.mkv")
    assert after.format.name == "yuv420p10le"
    assert int(after.color_range) == int(before.color_range) == (2 if full else 1)
    for small, large in zip(before.planes, after.planes, strict=True):
        step = 16 * small.width // 48
        small, large = (
            np.frombuffer(bytes(plane), "<u2").reshape(plane.height, -1)[:, : plane.width].astype(int)
            for plane in (small, large)
        )
        assert (
            np.abs(large[step :: 2 * step, step :: 2 * step] - small[step // 2 :: step, step // 2 :: step]).max() <= 1
        )


def test_full_range_is_kept(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mkv", "libx264", "yuvj420p")
    upscale_video(tmp_path / "a.mkv", tmp_path / "b.mkv", repeated)
    before, after = first_frame(tmp_path / "a.mkv"), first_frame(tmp_path / "b.mkv")
    assert int(after.color_range) == 2
    means = [
        np.frombuffer(bytes(frame.planes[0]), np.uint8).reshape(frame.height, -1)[:, : frame.width].mean()
        for frame in (before, after)
    ]
    assert means[0] == pytest.approx(means[1], abs=1)


def test_small_films_that_become_large_state_their_matrix(tmp_path: Path) -> None:
    """If the matrix is not stated, players assume BT.709 for large films and BT.601 (code 6) for small ones."""
    write_film(tmp_path / "a.mp4")

    def upscale(image: Array) -> Array:
        return image.repeat(20, axis=0).repeat(20, axis=1)

    upscale_video(tmp_path / "a.mp4", tmp_path / "b.mp4", upscale, options=FilmOptions(preset="ultrafast"))
    assert int(first_frame(tmp_path / "b.mp4").colorspace) == 6


def test_odd_sizes_are_padded_only_for_subsampled_formats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_film(tmp_path / "a.mkv", "ffv1", "yuv444p")

    def upscale(image: Array) -> Array:
        return image.repeat(3, axis=0).repeat(3, axis=1)[:93, :141]

    upscale_video(tmp_path / "a.mkv", tmp_path / "b.mp4", upscale)
    frame = first_frame(tmp_path / "b.mp4")
    assert (frame.width, frame.height, frame.format.name) == (141, 93, "yuv444p")
    assert "141x93 is odd" not in caplog.text
    upscale_video(tmp_path / "a.mkv", tmp_path / "c.mp4", upscale, options=FilmOptions(pix_fmt="yuv420p"))
    frame = first_frame(tmp_path / "c.mp4")
    assert (frame.width, frame.height) == (142, 94)
    assert "141x93 is odd" in caplog.text


def test_transparency_is_put_on_black(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "argb"
        pixels = np.full((32, 48, 4), 200, np.uint8)
        pixels[:, :24, 3], pixels[:, 24:, 3] = 0, 255
        frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="argb")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    seen: list[Array] = []
    upscale_video(tmp_path / "a.mov", tmp_path / "b.mov", lambda image: (seen.append(image), repeated(image))[1])
    assert (seen[0][:, :24] == 0).all()
    assert (seen[0][:, 24:] == 200).all()
    assert "transparency is dropped" in caplog.text


def test_colours_that_cannot_be_converted_are_refused(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mkv", "libx264", "yuv444p", matrix=8)
    with pytest.raises(DataError, match="matrix 8"):
        upscale_video(tmp_path / "a.mkv", tmp_path / "b.mkv", repeated)


def test_the_output_begins_at_zero(tmp_path: Path) -> None:
    write_film(tmp_path / "a.ts")
    with av.open(str(tmp_path / "a.ts")) as container:
        assert container.start_time > 0
    upscale_video(tmp_path / "a.ts", tmp_path / "b.mkv", repeated)
    assert times(tmp_path / "b.mkv") == pytest.approx([0, 0.1, 0.2, 0.3], abs=2e-3)


def test_an_interruption_leaves_no_file(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mkv")

    def upscale(image: Array) -> Array:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale_video(tmp_path / "a.mkv", tmp_path / "b.mkv", upscale)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


def test_ffprobe_reads_the_output(cases: Path, tmp_path: Path) -> None:
    if shutil.which("ffprobe") is None:
        pytest.skip("no ffprobe on this machine")
    upscale_video(cases / "multi.mp4", tmp_path / "a.mp4", repeated)
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=codec_type,nb_read_frames,width"]
    said = subprocess.run([*command, "-of", "csv=p=0", str(tmp_path / "a.mp4")], capture_output=True, text=True)
    assert said.stderr == ""
    assert said.stdout.splitlines()[0] == "video,128,24"
    assert said.stdout.count("audio,") == 2
