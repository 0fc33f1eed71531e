"""``safmn upscale`` on real-world inputs: all kinds of images, damaged files, films, unusual names, interruptions.

The network repeats each pixel, so the exact result is known.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageDraw, ImageSequence
from repeater import repeated, repeater
from skimage import data

from safmn.cli.upscale import main
from safmn.inference import file_run
from safmn.inference.file_jobs import FileJob
from safmn.inference.file_progress import FileBar
from safmn.inference.films import video
from safmn.system.files import TEMPORARY
from safmn.weights import save_weights

Array = np.ndarray[Any, np.dtype[Any]]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of weights that repeat each pixel at x2."""
    path = tmp_path_factory.mktemp("weights") / "repeat.safetensors"
    save_weights(path, params=repeater().state_dict())
    return path


Upscale = Callable[..., int]


@pytest.fixture
def upscale(weights: Path, tmp_path: Path) -> Upscale:
    """Return a function that runs the command on inputs with the output ``out`` and returns its exit status."""

    def run(*arguments: str | Path, out: Path = tmp_path / "out") -> int:
        options = ["--weights", weights, "--device", "cpu", "--backend", "eager", "-o", out]
        return main([str(argument) for argument in (*arguments, *options)])

    return run


def photo(height: int = 23, width: int = 31) -> Array:
    """Return a photograph, uint8 (height, width, 3)."""
    return np.ascontiguousarray(cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_AREA))


def deep(pixels: Array) -> Array:
    """Return uint16 pixels that are not multiples of 257."""
    return pixels.astype(np.uint16) * 250 + 3


def alpha(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels[::-1, ::-1, 1])


def distance(a: Array, b: Array) -> float:
    """Return the PSNR of two 8-bit images in dB."""
    assert a.shape == b.shape
    return float(-10 * np.log10(np.mean((a.astype(float) - b) ** 2) / 255**2 + 1e-10))


# Still images


RGB = photo()
EXACT: dict[str, Callable[[Path], Array]] = {}  # file name -> function that writes the file and returns its pixels
NEAR: dict[str, Callable[[Path], Array]] = {}  # the same for lossy formats


def exact(name: str) -> Callable[[Callable[[Path], Array]], Callable[[Path], Array]]:
    return lambda write: EXACT.setdefault(name, write)


def near(name: str) -> Callable[[Callable[[Path], Array]], Callable[[Path], Array]]:
    return lambda write: NEAR.setdefault(name, write)


def _saved(path: Path, image: Image.Image, **options: Any) -> Image.Image:
    image.save(path, **options)
    return image


@exact("rgb.png")
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(RGB), icc_profile=SRGB))


@exact("upper.PNG")
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(RGB[::-1].copy())))


@exact("grey.png")
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(RGB).convert("L")))


@exact("bilevel.png")
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(RGB).convert("1")).convert("L"))


@exact("grey alpha.png")
def _(path: Path) -> Array:
    image = Image.merge("LA", (Image.fromarray(RGB[..., 0].copy()), Image.fromarray(alpha(RGB))))
    return np.array(_saved(path, image))


@exact("rgba.png")
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(np.dstack([RGB, alpha(RGB)]))))


@exact("palette.png")
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(RGB).quantize(16)).convert("RGB"))


@exact("transparent palette.png")
def _(path: Path) -> Array:
    _saved(path, Image.fromarray(RGB).quantize(16), transparency=bytes([0, 128, 255]))
    with Image.open(path) as image:
        rgba = np.array(image.convert("RGBA"))
    assert set(np.unique(rgba[..., 3])) == {0, 128, 255}
    return rgba


@exact("deep.png")
def _(path: Path) -> Array:
    cv2.imwrite(str(path), deep(RGB)[..., ::-1])
    return deep(RGB)


@exact("deep grey.png")
def _(path: Path) -> Array:
    cv2.imwrite(str(path), deep(RGB[..., 1]))
    return deep(RGB[..., 1])


@exact("deep alpha.png")
def _(path: Path) -> Array:
    pixels = deep(np.dstack([RGB, alpha(RGB)]))
    cv2.imwrite(str(path), pixels[..., [2, 1, 0, 3]])
    return pixels


@exact("plain.tif")
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(RGB), compression="tiff_lzw"))


@exact("deep.tiff")
def _(path: Path) -> Array:
    tifffile.imwrite(path, deep(RGB), photometric="rgb")
    return deep(RGB)


@exact("deep grey.tif")
def _(path: Path) -> Array:
    tifffile.imwrite(path, deep(RGB[..., 2]), photometric="minisblack")
    return deep(RGB[..., 2])


@exact("planes.tif")
def _(path: Path) -> Array:
    tifffile.imwrite(path, deep(RGB).transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate")
    return deep(RGB)


@exact("white is zero.tif")
def _(path: Path) -> Array:
    tifffile.imwrite(path, 65535 - deep(RGB[..., 0]), photometric="miniswhite")
    return deep(RGB[..., 0])


@exact("windows.bmp")
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(RGB)))


@exact("targa.tga")  # written as PNG
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(RGB)))


@near("photo.jpg")
def _(path: Path) -> Array:
    _saved(path, Image.fromarray(RGB), quality=95, icc_profile=SRGB)
    return np.array(Image.open(path))


@near("grey.jpeg")
def _(path: Path) -> Array:
    _saved(path, Image.fromarray(RGB).convert("L"), quality=95)
    return np.array(Image.open(path))


@near("cmyk.jpg")
def _(path: Path) -> Array:
    _saved(path, Image.fromarray(RGB).convert("CMYK"), quality=95)
    return np.array(Image.open(path).convert("RGB"))


@near("photo.webp")
def _(path: Path) -> Array:
    return np.array(_saved(path, Image.fromarray(RGB), lossless=True))


@near("alpha.webp")
def _(path: Path) -> Array:
    smooth = np.dstack([RGB, np.full_like(RGB[..., 0], 255)])
    smooth[:8, :, 3] = 60
    return np.array(_saved(path, Image.fromarray(smooth), lossless=True))


@near("photo.avif")
def _(path: Path) -> Array:
    _saved(path, Image.fromarray(RGB), quality=95)
    return np.array(Image.open(path))


@near("tagged.jfif")  # written as PNG
def _(path: Path) -> Array:
    Image.fromarray(RGB).save(path, "JPEG", quality=95)
    return np.array(Image.open(path))


def pixels_of(path: Path) -> Array:
    """Return the pixels of a file, read with other libraries than the package uses, where possible."""
    if path.suffix in (".tif", ".tiff"):
        return np.asarray(tifffile.imread(path))
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.suffix == ".png" else None
    if raw is not None and raw.dtype == np.uint16:
        return raw if raw.ndim == 2 else raw[..., [2, 1, 0, 3][: raw.shape[2]]]
    with Image.open(path) as image:
        return np.array(image)


def write_exif_rotated(path: Path) -> Array:
    """Write an image with EXIF orientation 6 and return its pixels as stored."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    Image.fromarray(RGB).save(path, quality=95, exif=exif)
    return np.array(Image.open(path))


def test_every_kind_of_image(upscale: Upscale, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    expected = {}
    for index, (name, write) in enumerate({**EXACT, **NEAR}.items()):
        place = folder / ("deeper/日本 ünï" if index % 3 else ".")
        place.mkdir(parents=True, exist_ok=True)
        expected[place.relative_to(folder) / name] = write(place / name)
    assert upscale(folder) == 0
    for name, pixels in expected.items():
        target = tmp_path / "out" / name
        target = target if target.suffix not in (".tga", ".jfif") else target.with_suffix(".png")
        result = pixels_of(target)
        assert result.dtype == pixels.dtype, name
        if name.name in EXACT:
            assert np.array_equal(result, repeated(pixels)), name
        else:
            assert distance(result, repeated(pixels)) > 33, name
    outputs = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(outputs) == len(expected)
    assert "Traceback" not in capfd.readouterr().err


def test_profiles_and_orientation_are_kept(upscale: Upscale, tmp_path: Path) -> None:
    EXACT["rgb.png"](tmp_path / "a.png")
    NEAR["photo.jpg"](tmp_path / "b.jpg")
    stored = write_exif_rotated(tmp_path / "c.jpg")
    assert upscale(*(tmp_path / name for name in ("a.png", "b.jpg", "c.jpg"))) == 0
    for name in ("a.png", "b.jpg"):
        assert Image.open(tmp_path / "out" / name).info["icc_profile"] == SRGB
    rotated = Image.open(tmp_path / "out/c.jpg")
    assert (rotated.getexif()[0x0112], rotated.getexif()[0x010F]) == (6, "Camera")
    assert distance(np.array(rotated), repeated(stored)) > 33
    assert upscale(tmp_path / "c.jpg", "--format", "tif") == 0  # written without orientation: the pixels are turned
    turned = pixels_of(tmp_path / "out/c.tif")
    assert np.array_equal(turned, np.rot90(repeated(stored), -1))


def test_losses_due_to_a_format_are_reported(
    upscale: Upscale, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rgba = EXACT["rgba.png"](tmp_path / "a.png").astype(float)
    EXACT["deep.png"](tmp_path / "b.png")
    cv2.imwrite(str(tmp_path / "c.ppm"), deep(RGB)[..., ::-1])
    pages = [Image.fromarray(RGB) for _ in range(2)]
    pages[0].save(tmp_path / "d.tif", save_all=True, append_images=pages[1:])
    assert upscale(*(tmp_path / name for name in ("a.png", "b.png", "c.ppm", "d.tif")), "--format", "jpg") == 0
    for message in (r"a\.jpg: .*transparen", r"b\.jpg: .*8 bits.* 16", r"c\.jpg: .*8 bits.* 16", r"d\.tif: .*2 pages"):
        assert re.search(message, caplog.text), message
    on_white = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]
    assert distance(pixels_of(tmp_path / "out/a.jpg"), repeated(on_white)) > 33
    for name in "bc":
        assert distance(pixels_of(tmp_path / f"out/{name}.jpg"), repeated(deep(RGB) / 257)) > 33


# Damaged files


def png_header(width: int, height: int) -> bytes:
    """Return a valid black PNG file of one bit per pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def encoded(suffix: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo(64, 64)).save(stream, suffix, **options)
    return stream.getvalue()


def deep_png() -> bytes:
    return bytes(cv2.imencode(".png", deep(photo(64, 64)))[1])


def cut_animation(kind: str) -> bytes:
    stream = io.BytesIO()
    first, *others = (Image.fromarray(np.roll(photo(32, 48), 4 * step, 1)) for step in range(4))
    first.save(stream, kind, save_all=True, append_images=others)
    return stream.getvalue()[: len(stream.getvalue()) * 3 // 5]


BAD = {
    "empty.png": lambda: b"",
    "text.jpg": lambda: b"this is no image\n" * 20,
    "cut.png": lambda: encoded("PNG")[:900],
    "cut.jpg": lambda: encoded("JPEG")[:700],
    "cut.webp": lambda: encoded("WEBP")[:200],
    "cut.tif": lambda: encoded("TIFF")[:3000],
    "cut.avif": lambda: encoded("AVIF")[:500],
    "cut animation.gif": lambda: cut_animation("GIF"),
    "cut animation.png": lambda: cut_animation("PNG"),
    "cut animation.avif": lambda: cut_animation("AVIF"),
    "cut pages.tif": lambda: cut_animation("TIFF"),
    "header only.gif": lambda: b"GIF89a",
    "bomb.png": lambda: png_header(20000, 20000),
    "cut deep.png": lambda: deep_png()[:4000],
    "flipped deep.png": lambda: bytes(b ^ 0x5A if 60 < i < 500 else b for i, b in enumerate(deep_png())),
    "film.mp4": lambda: b"no film either" * 30,
    "flipped.png": lambda: bytes(b ^ 0x5A if 60 < i < 500 else b for i, b in enumerate(encoded("PNG"))),
}


def test_damaged_files_are_named_and_the_others_are_upscaled(
    upscale: Upscale, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in BAD.items():
        (folder / name).write_bytes(content())
    (folder / "notes.txt").write_text("not an image by its name")
    good = {name: EXACT[name](folder / name) for name in ("rgb.png", "windows.bmp")}
    assert upscale(folder) == 1
    output, errors = capfd.readouterr()
    summary = output[output.index(" failed,") :]
    for name in BAD:
        assert sum(line.startswith("failed") and f"/{name}" in line for line in summary.splitlines()) == 1, name
    assert "notes.txt" in summary
    assert "Traceback" not in output + errors
    for name, pixels in good.items():
        assert np.array_equal(pixels_of(tmp_path / "out" / name), repeated(pixels))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(good)  # no partial files


def test_max_pixels_limits_the_input(upscale: Upscale, tmp_path: Path) -> None:
    EXACT["rgb.png"](tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", "--max-pixels", "700") == 1
    assert upscale(tmp_path / "a.png", "--max-pixels", "713") == 0


# Animations and films


def animation_frames() -> list[Image.Image]:
    frames = []
    for step in range(5):
        image = Image.new("RGB", (24, 16), (200, 30, 30))
        ImageDraw.Draw(image).rectangle((4 * step, 4, 4 * step + 5, 11), fill=(20, 220, 40))
        frames.append(image)
    return frames


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("avif", {"subsampling": "4:4:4"})],
)
def test_animations_keep_durations_and_loops(
    suffix: str, options: dict[str, Any], upscale: Upscale, tmp_path: Path
) -> None:
    first, *others = animation_frames()
    durations = [100, 200, 50, 100, 300]
    source = tmp_path / f"a.{suffix}"
    first.save(source, save_all=True, append_images=others, duration=durations, loop=2, quality=95, **options)
    assert upscale(source, "--quality", "100") == 0
    with Image.open(tmp_path / f"out/a.{suffix}") as result:
        assert result.info.get("loop") == (None if suffix == "avif" else 2)
        seen = []
        for frame, expected in zip(ImageSequence.Iterator(result), animation_frames(), strict=True):
            near = distance(np.array(frame.convert("RGB")), repeated(np.array(expected)))
            assert near > (35 if suffix == "avif" else 99)
            seen.append(frame.info["duration"])
    assert seen == durations


def write_film(path: Path, frames: int = 6) -> None:
    """Write a film with H.264 and AAC: a moving square, and a tone."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=10, options={"crf": "5"})
        pictures.width, pictures.height, pictures.pix_fmt = 32, 24, "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(frames):
            pixels = np.full((24, 32, 3), 90, np.uint8)
            pixels[4:12, 4 * index : 4 * index + 8] = (230, 200, 40)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        tone = (np.sin(np.arange(9600) / 6) * 8000).astype(np.int16)
        for start in range(0, 9600, 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(sound.encode(frame))
        container.mux(pictures.encode(None))
        container.mux(sound.encode(None))


def film_content(path: Path) -> tuple[list[Array], list[float], list[bytes]]:
    """Return the frames, their times, and the packets of the sound."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        sound = [bytes(packet) for packet in container.demux(audio=0) if packet.dts is not None]
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time for frame in frames], sound


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_films_keep_their_sound(suffix: str, upscale: Upscale, tmp_path: Path) -> None:
    write_film(tmp_path / f"a.{suffix}")
    assert upscale(tmp_path / f"a.{suffix}") == 0
    pictures, times, sound = film_content(tmp_path / f"a.{suffix}")
    larger, later, same = film_content(tmp_path / f"out/a.{suffix}")
    assert len(larger) == 6
    assert sound
    assert sound == same
    assert np.allclose(times, later, atol=1e-3)
    for before, after in zip(pictures, larger, strict=True):
        assert distance(after, repeated(before)) > 30


def test_a_film_that_ends_early_leaves_no_output(upscale: Upscale, tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4")
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    assert upscale(tmp_path / "cut.mp4") == 1
    assert not list((tmp_path / "out").glob("*"))


# Names, reruns, interruptions


def test_patterns_keep_the_tree(upscale: Upscale, tmp_path: Path) -> None:
    for name in ("in/a.png", "in/x y/b.png", "in/x y/[1]/c.png", "in/x y/d.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        EXACT["rgb.png"](tmp_path / name)
    assert upscale(tmp_path / "in/**/*.png") == 0
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert found == ["a.png", "x y/[1]/c.png", "x y/b.png"]


def test_a_pattern_does_not_match_earlier_outputs(upscale: Upscale, tmp_path: Path) -> None:
    EXACT["rgb.png"](tmp_path / "a.png")
    for _ in range(2):
        assert upscale(tmp_path / "**/*.png") == 0
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["a.png"]


def test_linked_folders_are_followed_and_unreadable_ones_named(
    upscale: Upscale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/a.png", "elsewhere/b.png", "in/locked/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        EXACT["rgb.png"](tmp_path / name)
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")  # a loop
    scandir = os.scandir

    def refuses(path: Any) -> Any:  # instead of permissions, which do not apply to root
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    assert upscale(tmp_path / "in") == 1
    assert re.search(r"in/locked: .*Permission denied", capfd.readouterr().out)
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")) == [
        "a.png",
        "link/b.png",
    ]


def test_a_file_that_keeps_its_name_comes_first(
    upscale: Upscale, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    EXACT["rgb.png"](tmp_path / "in/p.png")
    Image.open(tmp_path / "in/p.png").convert("L").convert("RGB").save(tmp_path / "in/p.jp2")
    assert upscale(tmp_path / "in") == 1
    assert "p.jp2: " in capfd.readouterr().out
    assert np.array_equal(pixels_of(tmp_path / "out/p.png"), repeated(pixels_of(tmp_path / "in/p.png")))


def test_a_cut_film_is_named(
    upscale: Upscale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A film cut between two frames is detected by the number of frames in its header."""
    write_film(tmp_path / "a.mp4")
    whole = video.probe(tmp_path / "a.mp4")
    assert (whole.frames, whole.counted) == (6, True)
    monkeypatch.setattr(file_run, "probe", lambda path: replace(whole, frames=10))
    assert upscale(tmp_path / "a.mp4") == 1
    assert "a.mp4: only 6 of 10 frames" in capfd.readouterr().out
    assert (tmp_path / "out/a.mp4").is_file()


def test_a_pattern_with_outputs_beside_the_inputs(
    upscale: Upscale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    EXACT["rgb.png"](tmp_path / "a.png")
    assert upscale("*.png", "--format", "webp", out=Path(".")) == 0
    assert (tmp_path / "a.webp").is_file()


def test_outputs_are_kept_without_overwrite(upscale: Upscale, tmp_path: Path) -> None:
    EXACT["rgb.png"](tmp_path / "a.png")
    assert upscale(tmp_path / "a.png") == 0
    target = tmp_path / "out/a.png"
    target.write_bytes(b"mine")
    assert upscale(tmp_path / "a.png") == 0
    assert target.read_bytes() == b"mine"
    assert upscale(tmp_path / "a.png", "--overwrite") == 0
    assert np.array_equal(pixels_of(target), repeated(RGB))


def test_a_second_input_for_the_same_output_is_named(
    upscale: Upscale, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    EXACT["rgb.png"](folder / "a.png")
    EXACT["targa.tga"](folder / "a.tga")
    EXACT["rgb.png"](folder / "b.png")
    assert upscale(folder) == 1
    output = capfd.readouterr().out
    assert f"failed  {folder / 'a.tga'}" in output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]


def test_an_input_is_never_overwritten(upscale: Upscale, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    EXACT["rgb.png"](tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    for out in (tmp_path, tmp_path / "a.png"):
        assert upscale(tmp_path / "a.png", "--overwrite", out=out) == 2
        assert "written over" in capfd.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("inputs", "out", "message"),
    [
        (["a.png", "b.png"], "o.png", "several outputs need a folder"),
        (["sub"], "o.png", "several outputs need a folder"),
        (["empty"], "o", "no images and no films"),
        (["nope.png"], "o", "no such file"),
        (["*.tiff"], "o", "no such file"),
        (["a.png"], "a.png/sub", "it is a file"),
        (["a.png"], "o.mp4", "cannot be written as"),
        (["f.mp4"], "o.png", "cannot be written as"),
        (["f.mp4"], "o.avi", "cannot be written as"),
        (["a.png"], "o.tga", "cannot be written as"),
        (["a.png"], "o.heic", "cannot be written as"),
        (["a.png", "--format", "jpg"], "o.png", "differ; leave one out"),
        (["a.png", "--format", "xyz"], "o", "cannot write the format 'xyz'"),
        (["a.png", "--max-pixels", "0"], "o", "--max-pixels 0"),
        (["a.png", "--quality", "101"], "o", "--quality 101"),
        (["a.png", "--tile", "much"], "o", "--tile much"),
    ],
)
def test_mistakes_are_reported_before_any_work(
    inputs: list[str],
    out: str,
    message: str,
    upscale: Upscale,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("a.png", "b.png", "sub/c.png", "empty/notes.txt", "f.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert upscale(*inputs, out=Path(out)) == 2
    assert message in capfd.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_counts_a_file_that_failed_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", _Terminal())
    with FileBar(3) as bar:
        positions = []
        for number in range(3):
            bar.start(FileJob(Path(f"{number}.png"), Path("out.png")))
            bar.advance(1.0 if number != 1 else 0.25)
            bar.finish("")
            positions.append(bar.bar.n)
    assert positions == [1, 2, 3]


def test_the_same_file_may_be_given_twice(upscale: Upscale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EXACT["rgb.png"](tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert upscale("a.png", "./a.png", tmp_path / "a.png") == 0


def test_names_that_are_not_utf8_or_contain_newlines_and_braces(upscale: Upscale, tmp_path: Path) -> None:
    names = [os.fsencode(tmp_path) + name for name in (b"/\xff\xfe.png", b"/new\nline.png", b"/%s {}.png")]
    EXACT["rgb.png"](tmp_path / "a.png")
    for name in names:
        shutil.copy(tmp_path / "a.png", os.fsdecode(name))
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(stdout):
        assert upscale(*map(os.fsdecode, names)) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(("suffix", "width"), [("webp", 9000), ("jpg", 40000), ("gif", 40000)])
def test_a_result_too_large_for_its_format_is_an_error(
    suffix: str, width: int, upscale: Upscale, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (width, 1)).save(tmp_path / f"a.{suffix}")
    EXACT["rgb.png"](tmp_path / "b.png")
    assert upscale(tmp_path / f"a.{suffix}", tmp_path / "b.png") == 1
    assert "--format png" in capfd.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (700, 1)])
@pytest.mark.parametrize("tile", ["7", "auto", "0"])
def test_thin_images(height: int, width: int, tile: str, upscale: Upscale, tmp_path: Path) -> None:
    pixels = photo(height, width)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", "--tile", tile) == 0
    assert np.array_equal(pixels_of(tmp_path / "out/a.png"), repeated(pixels))


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_can_be_resumed(
    kill: signal.Signals, upscale: Upscale, weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    EXACT["rgb.png"](folder / "000.png")
    Image.fromarray(photo(300, 400)).save(folder / "001.png")
    for index in range(2, 16):
        shutil.copy(folder / "001.png", folder / f"{index:03d}.png")
    arguments = ["upscale", folder, "-o", tmp_path / "out", "--weights", weights, "--backend", "eager"]
    child = subprocess.Popen(
        [sys.executable, "-m", "safmn", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        # Shells start background processes with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "out/001.png").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(kill)
    errors = child.communicate()[1].decode()
    assert child.returncode == (-kill if kill == signal.SIGKILL else 128 + kill), errors
    if kill != signal.SIGKILL:
        assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(TEMPORARY)]
    assert "Traceback" not in errors
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.png") if not p.name.startswith(".")}
    assert 2 <= len(done) < 16
    assert upscale(folder) == 0
    assert len(list((tmp_path / "out").glob("[0-9]*.png"))) == 16
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    for path in done:
        Image.open(path).load()  # complete


def test_side_by_side_pictures(upscale: Upscale, tmp_path: Path) -> None:
    write_exif_rotated(tmp_path / "a.jpg")
    assert upscale(tmp_path / "a.jpg", "--compare") == 0
    panels = pixels_of(tmp_path / "out/a.jpg_compare.png")
    assert panels.shape[1] > 2 * 640
    assert panels.std() > 20


def test_a_side_by_side_picture_overwrites_nothing(upscale: Upscale, tmp_path: Path) -> None:
    EXACT["windows.bmp"](tmp_path / "a.bmp")
    EXACT["rgb.png"](tmp_path / "a.png_compare.png")
    before = (tmp_path / "a.png_compare.png").read_bytes()
    assert upscale(tmp_path / "a.bmp", "--compare", "--format", "png", out=tmp_path) == 0
    inputs = (tmp_path / "a.bmp", tmp_path / "a.png_compare.png")
    assert upscale(*inputs, "--compare", "--overwrite", "--format", "png", out=tmp_path) == 2
    assert (tmp_path / "a.png_compare.png").read_bytes() == before


def test_side_by_side_pictures_have_distinct_names(
    upscale: Upscale, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "a.jpg", "a_compare.png"):
        Image.fromarray(RGB).save(folder / name)
    names = {"a.png", "a.jpg", "a_compare.png"}
    assert upscale(folder, "--compare") == 0
    assert {path.name for path in out.iterdir()} == names | {f"{name}_compare.png" for name in names}
    assert np.array_equal(pixels_of(out / "a_compare.png"), repeated(RGB))
    inputs = (out / "a.png", out / "a.png_compare.png")  # an input whose output would be the comparison of another
    assert upscale(*inputs, "--compare", out=tmp_path / "again") == 1
    failed = f"failed  {out / 'a.png_compare.png'}: {tmp_path / 'again/a.png_compare.png'} "
    assert failed in capfd.readouterr().out


def test_missing_side_by_side_pictures_are_added_later(
    upscale: Upscale, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    EXACT["rgb.png"](tmp_path / "a.png")
    first, *others = animation_frames()
    first.save(tmp_path / "b.gif", save_all=True, append_images=others)
    inputs = (tmp_path / "a.png", tmp_path / "b.gif")
    assert upscale(*inputs) == 0
    for name in ("a.png", "b.gif"):
        (tmp_path / "out" / name).write_bytes(b"mine")
    capfd.readouterr()
    assert upscale(*inputs, "--compare") == 0
    said = capfd.readouterr().out
    assert "1 upscaled, 1 kept, 0 failed" in said
    assert said.count("--compare does not apply") == 1
    assert pixels_of(tmp_path / "out/a.png_compare.png").shape[1] > 2 * 640
    assert all((tmp_path / "out" / name).read_bytes() == b"mine" for name in ("a.png", "b.gif"))
    assert upscale(*inputs, "--compare") == 0
    assert "0 upscaled, 2 kept" in capfd.readouterr().out


def test_an_output_folder_may_be_named_like_a_file(upscale: Upscale, tmp_path: Path) -> None:
    EXACT["rgb.png"](tmp_path / "a.png")
    (tmp_path / "o.tga").mkdir()
    assert upscale(tmp_path / "a.png", out=tmp_path / "o.tga") == 0
    assert upscale(tmp_path / "a.png", out=tmp_path / "v1.5") == 0
    assert (tmp_path / "o.tga/a.png").is_file()
    assert (tmp_path / "v1.5/a.png").is_file()
