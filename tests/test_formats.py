"""Image files and animations that are easily misread or written wrongly: damaged files, unusual formats, metadata."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data

from safmn.errors import DataError
from safmn.inference.films.animation import read_animation, write_animation
from safmn.inference.pictures import Picture, read_picture, write_picture

Array = np.ndarray[Any, np.dtype[Any]]
ORIENTATION, CAMERA = 0x0112, 0x010F


def photo(height: int = 24, width: int = 36) -> Array:
    """Return a photograph, uint8 (height, width, 3)."""
    return np.ascontiguousarray(cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_AREA))


def deep(pixels: Array) -> Array:
    """Return uint16 pixels that are not multiples of 257."""
    return pixels.astype(np.uint16) * 250 + 3


def animated(kind: str, count: int = 4, **options: Any) -> bytes:
    """Return an animation file of Pillow's format ``kind``."""
    stream = io.BytesIO()
    first, *others = (Image.fromarray(np.roll(photo(), 4 * step, 1)) for step in range(count))
    first.save(stream, kind, save_all=True, append_images=others, **options)
    return stream.getvalue()


# Damage


@pytest.mark.parametrize("suffix", ["gif", "tiff", "avif", "png", "webp"])
def test_damaged_files_raise_only_errors_that_name_the_file(suffix: str, tmp_path: Path) -> None:
    whole = animated(suffix.upper())
    path = tmp_path / f"a.{suffix}"
    generator = np.random.default_rng(0)
    messages = []
    for index in range(60):
        content = bytearray(whole)
        if index % 2:
            content = content[: generator.integers(1, len(content))]
        else:
            for place in generator.integers(min(len(content), 400), size=4):
                content[place] = generator.choice([0, 1, 255, generator.integers(256)])
        path.write_bytes(content)
        try:
            animation = read_animation(path, max_pixels=10**6)
            _ = list(animation.frames()) if animation else read_picture(path, max_pixels=10**6)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(str(path) in message for message in messages)


# Pixel formats


@pytest.mark.parametrize("width", [116, 160, 540, 720])
def test_a_bmp_of_any_width_has_8_bits(width: int, tmp_path: Path) -> None:
    pixels = photo(4, width)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    assert np.array_equal(read_picture(tmp_path / "a.bmp").pixels, pixels)
    Image.fromarray(pixels).convert("L").save(tmp_path / "b.bmp")
    assert read_picture(tmp_path / "b.bmp").pixels.dtype == np.uint8


def test_a_jpeg_2000_file_of_any_length_has_8_bits(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.jp2")
    content = (tmp_path / "a.jp2").read_bytes()
    (tmp_path / "a.jp2").write_bytes(content.ljust(16000, b"\0"))
    assert np.array_equal(read_picture(tmp_path / "a.jp2").pixels, photo())


def test_a_bmp_of_5_6_and_5_bits(tmp_path: Path) -> None:
    header = struct.pack("<2sIHHI", b"BM", 70 + 8, 0, 0, 70)
    header += struct.pack("<IiiHHIIiiII4I", 56, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0, 0xF800, 0x07E0, 0x001F, 0)
    (tmp_path / "a.bmp").write_bytes(header + struct.pack("<4H", 0xF800, 0x07E0, 0x001F, 0xFFFF))
    red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    assert np.array_equal(read_picture(tmp_path / "a.bmp").pixels, [[blue, white], [red, green]])


@pytest.mark.parametrize(("sign", "channels"), [(b"P5", 1), (b"P6", 3)])
@pytest.mark.parametrize("white", [1023, 4095, 65535])
def test_portable_maps_of_more_than_8_bits_become_16(sign: bytes, channels: int, white: int, tmp_path: Path) -> None:
    values = np.linspace(0, white, 24 * channels).round().astype(">u2")
    (tmp_path / "a.pnm").write_bytes(sign + b"\n6 4\n%d\n" % white + values.tobytes())
    pixels = read_picture(tmp_path / "a.pnm").pixels
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels.ravel(), np.rint(values.astype(float) / white * 65535))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_tiff_is_turned_in_interleaved_and_separate_planes(orientation: int, tmp_path: Path) -> None:
    tags = [(ORIENTATION, "H", 1, orientation, True)]
    planes = np.moveaxis(deep(photo()), -1, 0).copy()
    tifffile.imwrite(tmp_path / "a.tif", deep(photo()), photometric="rgb", extratags=tags)
    tifffile.imwrite(tmp_path / "b.tif", planes, photometric="rgb", planarconfig="separate", extratags=tags)
    first, second = (read_picture(tmp_path / name).upright().pixels for name in ("a.tif", "b.tif"))
    assert np.array_equal(first, second)
    assert np.array_equal(first, deep(photo())) == (orientation == 1)


def test_colours_of_16_bit_tiff_are_divided_by_associated_alpha(tmp_path: Path) -> None:
    alpha = np.broadcast_to(np.linspace(0, 65535, 36).astype(np.uint16), (24, 36))
    colours = deep(photo())
    premultiplied = np.rint(colours * (alpha[..., None] / 65535)).astype(np.uint16)
    for name, stored, extra in (("a.tif", premultiplied, "assocalpha"), ("b.tif", colours, "unassalpha")):
        tifffile.imwrite(tmp_path / name, np.dstack([stored, alpha]), photometric="rgb", extrasamples=[extra])
        result = read_picture(tmp_path / name).pixels
        assert np.array_equal(result[..., 3], alpha)
        assert np.allclose(result[:, 1:, :3], colours[:, 1:], atol=20), name  # column 1 has only 1/36 of the levels


def test_16_bit_png_with_one_transparent_value(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for name, pixels in (("grey.png", deep(photo()[..., 1])), ("rgb.png", deep(photo()))):
        cv2.imwrite(str(tmp_path / name), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
        content = (tmp_path / name).read_bytes()
        key = pixels[5, 7]
        place = content.index(b"IDAT") - 4
        with_key = content[:place] + chunk(b"tRNS", np.array(key, ">u2").tobytes()) + content[place:]
        (tmp_path / name).write_bytes(with_key)
        result = read_picture(tmp_path / name).pixels
        there = pixels == key if pixels.ndim == 2 else (pixels == key).all(axis=2)
        assert np.array_equal(result[..., -1], np.where(there, 0, 65535)), name
        assert np.array_equal(result[..., :-1].squeeze(), pixels), name


def test_errors_distinguish_unsupported_and_damaged_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", photo().astype(np.int32), photometric="rgb")
    with pytest.raises(DataError, match=r"a\.tif: .*int32.* 8 or 16 bits"):
        read_picture(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(b"II*\0 no image")
    with pytest.raises(DataError, match=r"b\.tif: .*decoded as TIFF"):
        read_picture(tmp_path / "b.tif")


@pytest.mark.parametrize("soft", [False, True])
def test_gif_gets_binary_alpha_with_a_warning_if_it_was_soft(
    soft: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.dstack([data.astronaut()[::4, ::4], np.zeros((128, 128), np.uint8)])
    alpha = pixels[..., 3].copy()
    cv2.circle(alpha, (64, 64), 40, 255, -1, cv2.LINE_AA)
    if soft:
        alpha = cv2.GaussianBlur(alpha, (0, 0), 12)
    pixels[..., 3] = alpha
    pixels[alpha == 0, :3] = 0
    with caplog.at_level("WARNING"):
        write_picture(tmp_path / "a.gif", Picture(pixels))
    result = np.array(Image.open(tmp_path / "a.gif").convert("RGBA"))
    np.testing.assert_array_equal(result[..., 3], np.where(alpha >= 128, 255, 0))
    shown = alpha >= 128
    assert np.abs(result[shown, :3].astype(int) - pixels[shown, :3]).mean() < 12
    messages = {record.getMessage() for record in caplog.records}
    assert ["transparen" in message for message in messages] == [True] * soft


def test_descriptions_of_the_old_file_are_left_out(tmp_path: Path) -> None:
    stack = np.stack([data.astronaut()[:20, :24, 0]] * 3)
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True)
    write_picture(tmp_path / "out.tif", read_picture(tmp_path / "stack.tif"))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), stack[0])


# Animations


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("orientation", [6, 3])
def test_animations_keep_their_exif_data(suffix: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[CAMERA] = orientation, "Camera"
    source, same = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    source.write_bytes(animated(suffix.upper(), exif=exif.tobytes()))
    animation = read_animation(source)
    assert animation
    write_animation(same, animation.frames(), animation)
    with Image.open(same) as image:
        assert image.n_frames == 4  # type: ignore[attr-defined]
        assert (image.getexif()[ORIENTATION], image.getexif()[CAMERA]) == (orientation, "Camera")
    for name in ("c.gif", "c.avif"):  # written upright
        write_animation(tmp_path / name, animation.frames(), animation)
        with Image.open(tmp_path / name) as image:
            expected = np.rot90(next(iter(animation.frames())), {6: -1, 3: 2}[orientation]).astype(float)
            assert np.abs(np.array(image.convert("RGB")) - expected).mean() < 12  # of 256 colours
            assert image.getexif().get(ORIENTATION, 1) == 1


@pytest.mark.parametrize(("suffix", "loop"), [("gif", None), ("png", 1), ("webp", 1)])
def test_a_gif_that_plays_once_plays_once_in_other_formats(suffix: str, loop: int | None, tmp_path: Path) -> None:
    """A GIF without a loop count plays once; in other formats, no loop count means endless."""
    frames = [Image.fromarray(np.roll(photo(), 4 * step, 1)) for step in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    animation = read_animation(tmp_path / "a.gif")
    assert animation
    write_animation(tmp_path / f"b.{suffix}", animation.frames(), animation)
    with Image.open(tmp_path / f"b.{suffix}") as image:
        assert image.info.get("loop") == loop


@pytest.mark.parametrize(("suffix", "kept"), [("png", True), ("jpg", True), ("webp", False), ("avif", False)])
def test_grey_profiles_stay_with_grey_files(suffix: str, kept: bool, tmp_path: Path) -> None:
    profile = bytes(16) + b"GRAY" + bytes(108)
    write_picture(tmp_path / f"a.{suffix}", Picture(photo()[..., 0].copy(), None, profile))
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert ("icc_profile" in image.info) == kept


def test_the_default_image_of_an_apng_is_kept_and_is_no_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.roll(photo(), 4 * step, 1)) for step in range(3)]
    plain = Image.new("RGB", frames[0].size, (255, 0, 255))
    durations = [50, 70, 90]
    plain.save(tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=durations, loop=2)
    animation = read_animation(tmp_path / "a.png")
    assert animation
    write_animation(tmp_path / "b.png", animation.frames(), animation)
    write_animation(tmp_path / "b.gif", animation.frames(), animation)
    with Image.open(tmp_path / "b.png") as image:
        assert image.default_image  # type: ignore[attr-defined]
        assert image.n_frames == 4  # type: ignore[attr-defined]
        assert np.array_equal(np.array(image), np.array(plain))
    for name, start in (("b.png", 1), ("b.gif", 0)):
        with Image.open(tmp_path / name) as image:
            seen = []
            for number, frame in enumerate(frames):
                image.seek(start + number)
                assert np.abs(np.array(image.convert("RGB")).astype(float) - np.array(frame)).mean() < 12
                seen.append(image.info["duration"])
        assert seen == durations
