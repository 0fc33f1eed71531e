"""Unusual image files: ``safmn upscale`` keeps their pixels, colours and metadata."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import browser
import cv2
import numpy as np
import odd_files
import pytest
import tifffile
from conftest import SHARED
from odd_files import GREY, NOTES, OTHERS, PHOTO, XMP, chunk, exif, png, profile
from PIL import Image
from repeater import repeated, repeater

from safmn.cli.upscale import main
from safmn.errors import DataError
from safmn.inference.films.animation import read_animation
from safmn.inference.pictures import read_picture
from safmn.inference.pictures.picture import eight_bits
from safmn.weights import save_weights

Array = np.ndarray[Any, np.dtype[Any]]
Upscale = Callable[..., Path]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that repeat each pixel at x2."""
    path = tmp_path_factory.mktemp("weights") / "repeat.safetensors"
    save_weights(path, params=repeater().state_dict())
    return path


@pytest.fixture
def upscale(weights: Path, tmp_path: Path) -> Upscale:
    """Return a function that upscales a file and returns the output, optionally with another suffix."""

    def run(source: Path, suffix: str | None = None, status: int = 0) -> Path:
        target = tmp_path / "out" / (source.stem + (suffix or source.suffix))
        options = ["--weights", weights, "--device", "cpu", "--backend", "eager", "--quality", "100", "-o", target]
        assert main([str(argument) for argument in (source, *options)]) == status
        return target

    return run


@pytest.fixture
def cases() -> Path:
    """Return the folder of small inputs that earlier versions converted incorrectly."""
    if not (SHARED / "cases").is_dir():
        pytest.skip(f"no shared test data at {SHARED / 'cases'}")
    return SHARED / "cases"


def shown(path: Path) -> Array:
    """Return the pixels of a file, upright, with 8 bits."""
    pixels = read_picture(path).upright().pixels
    return eight_bits(pixels) if pixels.dtype == np.uint16 else pixels


def difference(found: Array, expected: Array) -> float:
    """Return the largest difference among pixels that are not almost transparent."""
    assert found.shape == expected.shape
    has_alpha = expected.ndim == 3 and expected.shape[2] in (2, 4)
    seen = expected[..., -1] > 40 if has_alpha else np.ones(expected.shape[:2], bool)
    return float(np.abs(found[seen].astype(int) - expected[seen]).max())


# Pixels


@pytest.mark.parametrize("name", OTHERS)
def test_pixels_of_unusual_files(name: str, tmp_path: Path) -> None:
    expected = OTHERS[name](tmp_path / name)
    assert difference(shown(tmp_path / name), expected) <= (10 if "ycbcr" in name else 3)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_more_than_8_bits_become_16(bits: int, upscale: Upscale, tmp_path: Path) -> None:
    stored = (np.arange(24 * 36, dtype="u4").reshape(24, 36) * (2**bits - 1) // (24 * 36 - 1)).astype("u2")
    options = {} if bits == 16 else {"bitspersample": bits}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", metadata=None, **options)
    for suffix in (".tif", ".png"):
        result = read_picture(upscale(tmp_path / "a.tif", suffix)).pixels
        assert np.array_equal(result, repeated(np.rint(stored * (65535 / (2**bits - 1))).astype("u2")))


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_of_more_than_8_bits(bits: int, upscale: Upscale, tmp_path: Path) -> None:
    """PNG keeps every value; AVIF keeps 10 bits and the code points."""
    odd_files.BROWSER[f"p3_{bits}.avif"](tmp_path / "a.avif")
    source = read_picture(tmp_path / "a.avif").pixels
    assert source.dtype == np.uint16
    assert len(np.unique(source >> 6)) > 300
    assert np.array_equal(read_picture(upscale(tmp_path / "a.avif", ".png")).pixels, repeated(source))
    result = read_picture(upscale(tmp_path / "a.avif"))
    assert result.pixels.dtype == np.uint16
    assert np.abs(result.pixels.astype(int) - repeated(source)).max() <= 64
    assert result.extras.colours is not None
    assert result.extras.colours.points == (12, 13)


@pytest.mark.parametrize("bits", [8, 10])
def test_heic(bits: int, tmp_path: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIC is read upright with its depth and EXIF data; without pillow-heif the error names the package."""
    pillow_heif = pytest.importorskip("pillow_heif")
    large = cv2.resize(PHOTO, (128, 96), interpolation=cv2.INTER_CUBIC)
    mode, pixels = ("RGB", large) if bits == 8 else ("RGB;16", large.astype("u2") * 257)
    image = pillow_heif.from_bytes(mode, (128, 96), pixels.tobytes())
    notes = {"exif": b"Exif\0\0" + exif(orientation=6), "xmp": XMP % 6}
    image.save(tmp_path / "a.heic", quality=95, chroma="444", **notes)
    result = read_picture(upscale(tmp_path / "a.heic", ".png"))
    assert result.pixels.dtype == (np.uint8 if bits == 8 else np.uint16)
    found = result.pixels if bits == 8 else eight_bits(result.pixels)
    assert np.abs(found.astype(int) - repeated(np.rot90(large, -1))).mean() < 3
    assert result.exif
    assert b"Camera" in result.exif
    assert result.orientation == 1  # the pixels are upright, and must not be rotated again
    assert result.extras.xmp == XMP % 1
    for suffix in (".tif", ".jpg"):
        assert (
            read_picture(upscale(tmp_path / "a.heic", suffix)).upright().size == repeated(np.rot90(large)).shape[1::-1]
        )
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"a\.heic: .*pip install pillow-heif"):
        read_picture(tmp_path / "a.heic")


def test_avif_with_damaged_exif_data_keeps_its_rotation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file states the rotation outside the EXIF data."""
    path = tmp_path / "a.avif"
    Image.fromarray(PHOTO).save(path, exif=b"Exif\0\0" + exif(orientation=6))
    content = path.read_bytes()
    assert content.count(b"II*\0") == 1
    path.write_bytes(content.replace(b"II*\0\x08\0\0\0", b"II*\0\xff\xff\xff\0"))
    assert read_picture(path).orientation == 6
    assert "EXIF data cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.where(GREY > 200, np.nan, GREY / 255), "NaN"),
        (GREY / 25.0, "unclear which value is white"),
        (GREY - 128.0, "unclear which value is white"),
    ],
)
def test_floats_with_nan_or_an_ambiguous_white_are_refused(values: Array, said: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values.astype(np.float32), photometric="minisblack")
    with pytest.raises(DataError, match=rf"a\.tif: .*{said}"):
        read_picture(tmp_path / "a.tif")


def test_a_guessed_white_and_clipped_floats_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.float32), photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", (GREY / 240).astype(np.float32), photometric="minisblack")
    assert np.array_equal(shown(tmp_path / "a.tif"), GREY)
    read_picture(tmp_path / "b.tif")
    assert "a.tif: floating-point values" in caplog.text
    assert "255 is taken as white" in caplog.text
    outside = int((GREY > 240).sum())
    assert outside > 0
    assert "b.tif: floating-point values" in caplog.text
    assert f"{outside} pixels outside 0 to 1" in caplog.text


@pytest.mark.parametrize("name", ["a.dng", "a.tif", "a.nef", "a.cr2"])
def test_raw_files_are_refused(name: str, tmp_path: Path) -> None:
    sensor = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    with tifffile.TiffWriter(tmp_path / name) as file:
        file.write(PHOTO, photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        file.write(sensor, photometric=32803, metadata=None, extratags=[(33421, "H", 2, (2, 2), True)])
    with pytest.raises(DataError, match=rf"{name}: .*raw file.*developed"):
        read_picture(tmp_path / name)


@pytest.mark.parametrize("head", [b"IIRO", b"IIU\0", b"FUJIFILMCCD-RAW", b"\0\0\0\x18ftypcrx "])
def test_raw_files_of_other_containers_are_refused(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(head.ljust(100, b"\0"))
    with pytest.raises(DataError, match=r"a\.bin: .*raw file"):
        read_picture(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pages.tif", "only the first of its 3 pages"),
        ("unmarked_thumbnail_first.tif", "only page 2 of its 2 pages"),
        ("unspecified_u2_contig.tif", "1 extra channel"),
        ("cmyk_u2_separate.tif", "CMYK without a profile"),
        ("thumbnail_first.tif", None),
        ("pyramid.tif", None),
        ("rgb_u1_contig.tif", None),
    ],
)
def test_what_is_left_out_of_a_tiff_is_reported(
    name: str, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Left out pages and channels cause a warning; expected extra pages, such as thumbnails, cause none."""
    OTHERS[name](tmp_path / name)
    read_picture(tmp_path / name)
    assert (f"{name}: {said}" in caplog.text) if said else not caplog.text


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_is_converted_through_its_profile(bits: int, tmp_path: Path) -> None:
    """The result equals Pillow's conversion through a CMYK profile that is installed on this machine."""
    path = next(iter(Path("/usr/share/color/icc").rglob("*CMYK*.icc")), None) or next(
        iter(Path("/usr/share/color/icc").rglob("FOGRA39*.icc")), None
    )
    if path is None:
        pytest.skip("no CMYK profile on this machine")
    from PIL import ImageCms

    inks = np.random.default_rng(0).integers(0, 256, (24, 36, 4)).astype(np.uint8)
    converted = ImageCms.profileToProfile(
        Image.fromarray(inks, "CMYK"), str(path), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    stored = inks if bits == 8 else inks.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="separated", iccprofile=path.read_bytes())
    assert difference(shown(tmp_path / "a.tif"), np.array(converted)) <= 2


def test_gif_frames_are_composed_as_in_browsers(tmp_path: Path) -> None:
    """Disposal 2 clears to transparent, not to a colour, and disposal 3 restores; all frames have equal channels."""
    odd_files.BROWSER["disposal2_opaque.gif"](tmp_path / "a.gif")
    animation = read_animation(tmp_path / "a.gif")
    assert animation
    frames = list(animation.frames())
    assert {frame.shape for frame in frames} == {(24, 36, 4)}
    assert frames[1][4:12, 4:12, 3].all()
    assert not frames[2][4:12, 4:12, 3].any()
    odd_files.BROWSER["disposal3_opaque.gif"](tmp_path / "b.gif")
    animation = read_animation(tmp_path / "b.gif")
    assert animation
    frames = list(animation.frames())
    assert frames[0].shape == (24, 36, 3)
    assert np.array_equal(frames[2][4:10, 4:12], frames[0][4:10, 4:12])


def test_apng_frames_are_blended_once(tmp_path: Path) -> None:
    odd_files.BROWSER["clear0_over.apng"](tmp_path / "a.png")
    animation = read_animation(tmp_path / "a.png")
    assert animation
    assert not animation.transparent  # a partly transparent frame over an opaque one gives an opaque result
    first, second, *_ = animation.frames()
    alpha = np.linspace(0, 255, 12).astype(np.uint8)[None, :, None] / 255
    expected = PHOTO[:8, :12] * alpha + first[4:12, 4:16] * (1 - alpha)
    assert np.abs(second[4:12, 4:16] - expected).max() <= 1.5


# Metadata


@pytest.mark.parametrize("name", ["dpi300.png", "dpi300.jpg", "dpi300.tif"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp", ".avif"])
def test_the_printed_size_is_kept(name: str, suffix: str, upscale: Upscale, tmp_path: Path) -> None:
    """At x2 the resolution doubles, along x and along y."""
    source = tmp_path / name
    Image.fromarray(PHOTO).save(source, dpi=(300, 150))
    result = read_picture(upscale(source, suffix)).extras.resolution
    assert result is not None
    assert (round(result.x), round(result.y)) == (600, 300)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif"])
def test_exif_data_is_kept_byte_for_byte(order: str, suffix: str, upscale: Upscale, tmp_path: Path) -> None:
    """Only the sizes and the resolution change, in place."""
    block = exif(order=order)
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    result = read_picture(upscale(tmp_path / "a.jpg", suffix)).exif
    assert result is not None
    assert len(result) == len(block)
    changed = [place for place, (old, new) in enumerate(zip(block, result, strict=True)) if old != new]
    sizes = [block.index(struct.pack(order + "HH", tag, kind)) for tag, kind in ((40962, 4), (40963, 3))]
    allowed = {place for line in sizes for place in range(line, line + 12)}
    rational = struct.pack(order + "II", 72, 1)  # the resolutions along x and y, next to each other
    allowed |= set(range(block.index(rational), block.index(rational) + 16))
    assert set(changed) <= allowed
    read = Image.Exif()
    read.load(result)
    details = read.get_ifd(0x8769)
    assert (details[40962], details[40963]) == (72, 48)
    assert details[37500] == NOTES


def test_exif_data_survives_conversion_to_tiff_and_back(upscale: Upscale, tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif(order=">", orientation=6), dpi=(72, 72))
    as_tiff = upscale(tmp_path / "a.jpg", ".tif")
    with tifffile.TiffFile(as_tiff) as file:
        tags = file.pages.first.tags
        assert (tags["Make"].value, tags["XResolution"].value) == ("Camera", (144, 1))
        details = tags["ExifTag"].value
        assert details["MakerNote"] == NOTES
        assert details["ExposureTime"] == (1, 250)
        assert (details["PixelXDimension"], details["PixelYDimension"]) == (48, 72)  # the pixels were rotated
    back = read_picture(upscale(as_tiff, ".png"))
    assert back.exif
    assert NOTES in back.exif
    assert back.size == (96, 144)


def test_thumbnails_of_the_old_image_are_not_kept(upscale: Upscale, tmp_path: Path) -> None:
    main_ = odd_files.directory([(271, 2, 7, b"Camera\0")], 8, "<", following=100)
    small = odd_files.directory([(513, 4, 1, struct.pack("<I", 200)), (514, 4, 1, struct.pack("<I", 9))], 100, "<")
    block = (b"II*\0\x08\0\0\0" + main_).ljust(100, b"\0") + small
    block = block.ljust(200, b"\0") + b"THUMBNAIL"
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    result = upscale(tmp_path / "a.jpg").read_bytes()
    assert b"Camera" in result
    assert b"THUMBNAIL" not in result


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".tif"])
def test_xmp_is_kept_and_its_orientation_is_ignored(suffix: str, upscale: Upscale, tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", xmp=XMP % 6)
    result = read_picture(upscale(tmp_path / "a.jpg", suffix))
    assert result.size == (72, 48)
    assert result.orientation == 1
    assert result.extras.xmp
    assert b"Somebody" in result.extras.xmp


def test_the_orientation_in_xmp_is_reset_when_the_pixels_are_rotated(upscale: Upscale, tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", xmp=XMP % 6, exif=b"Exif\0\0" + exif(orientation=6))
    kept = read_picture(upscale(tmp_path / "a.jpg", ".png"))
    assert (kept.size, kept.orientation) == ((72, 48), 6)
    assert kept.extras.xmp == XMP % 6
    turned = read_picture(upscale(tmp_path / "a.jpg", ".tif"))
    assert (turned.size, turned.orientation) == ((48, 72), 1)
    assert turned.extras.xmp == XMP % 1


def test_xmp_loses_descriptions_of_parts_that_are_not_written(upscale: Upscale, tmp_path: Path) -> None:
    packet = (XMP % 1).replace(b"tiff:Orientation", b'hdrgm:Version="1.0" GCamera:MotionPhoto="1" tiff:Orientation')
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", xmp=packet)
    assert read_picture(upscale(tmp_path / "a.jpg")).extras.xmp == XMP % 1


def test_iptc_comments_and_texts(upscale: Upscale, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are kept where the format can hold them; otherwise one warning names them."""
    iptc = b"\x1c\x02\x05\0\x05Title"
    resource = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc
    segment = b"\xff\xed" + struct.pack(">H", len(resource) + 2) + resource
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", comment=b"a comment", extra=segment)
    for suffix in (".jpg", ".png", ".tif"):
        result = read_picture(upscale(tmp_path / "a.jpg", suffix))
        assert result.extras.iptc is not None
        assert result.extras.iptc.startswith(iptc)
        described = result.exif if suffix == ".tif" else result.extras.comment
        assert b"a comment" in (described or b"")
    assert not caplog.text
    upscale(tmp_path / "a.jpg", ".webp")
    assert "a.webp: WEBP cannot hold the IPTC data and the comment" in caplog.text
    texts = [chunk(b"tEXt", b"parameters\0a cat"), chunk(b"zTXt", b"Title\0\0" + zlib.compress(b"Cat"))]
    (tmp_path / "b.png").write_bytes(png(PHOTO, colour=2, after=texts))
    with Image.open(upscale(tmp_path / "b.png")) as image:
        assert image.text == {"parameters": "a cat", "Title": "Cat"}  # type: ignore[attr-defined]
    upscale(tmp_path / "b.png", ".jpg")
    assert "b.jpg: JPEG cannot hold the texts (parameters, Title)" in caplog.text


# Colours


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    "chunks",
    [
        [(b"gAMA", struct.pack(">I", 100000))],
        [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455))],
        [(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000))],
        [(b"cICP", bytes([12, 13, 0, 1]))],
    ],
)
def test_png_keeps_the_chunks_that_state_its_colour_space(
    deep: bool, chunks: list[tuple[bytes, bytes]], upscale: Upscale, tmp_path: Path
) -> None:
    pixels, bits = (PHOTO.astype("u2") * 250, 16) if deep else (PHOTO, 8)
    (tmp_path / "a.png").write_bytes(png(pixels, colour=2, bits=bits, before=[chunk(*part) for part in chunks]))
    result = upscale(tmp_path / "a.png")
    colours = read_picture(result).extras.colours
    assert colours is not None
    assert list(colours.chunks) == chunks
    assert np.array_equal(read_picture(result).pixels, repeated(pixels))


@pytest.mark.parametrize(
    ("points", "said"),
    [((10, 13), "colour primaries 10"), ((1, 11), "transfer characteristics 11"), ((2, 2), None), ((12, 8), None)],
)
def test_colours_that_a_format_cannot_express_are_said(
    points: tuple[int, int], said: str | None, upscale: Upscale, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = [chunk(b"cICP", bytes([*points, 0, 1]))]
    (tmp_path / "a.png").write_bytes(png(PHOTO, colour=2, before=before))
    for suffix in (".jpg", ".bmp"):
        caplog.clear()
        upscale(tmp_path / "a.png", suffix)
        assert (said is not None) == ("taken as sRGB" in caplog.text)
        assert said is None or said in caplog.text
    caplog.clear()
    for suffix in (".png", ".avif"):
        found = read_picture(upscale(tmp_path / "a.png", suffix)).extras.colours
        assert said is None or (found is not None and found.points == points)
    assert "taken as sRGB" not in caplog.text


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".avif", ".bmp", ".gif"])
@pytest.mark.parametrize("grey", [False, True])
def test_a_stated_colour_space_becomes_a_profile_or_srgb(
    suffix: str, grey: bool, upscale: Upscale, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """BMP and GIF, which hold no profile, get sRGB pixels: 128 in linear light equals 188 in sRGB."""
    flat = np.full((16, 16) if grey else (16, 16, 3), 128, np.uint8)
    before = [chunk(b"gAMA", struct.pack(">I", 100000))]
    (tmp_path / "a.png").write_bytes(png(flat, colour=0 if grey else 2, before=before))
    result = read_picture(upscale(tmp_path / "a.png", suffix))
    level = int(np.median(result.pixels))
    assert (result.icc is None) == (suffix in (".bmp", ".gif"))
    if result.icc is None:
        assert level == pytest.approx(188, abs=2)
        assert "converted to sRGB" in caplog.text
    else:
        from safmn.imaging.icc_profiles import to_srgb

        assert level == 128
        assert np.median(to_srgb(result.pixels, result.icc)) == pytest.approx(188, abs=2)
        assert "written as a colour profile" in caplog.text


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".ppm"])
def test_a_profile_that_cannot_be_kept_is_applied(
    suffix: str, upscale: Upscale, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.png", icc_profile=profile("swapped"))
    red, green, _ = read_picture(upscale(tmp_path / "a.png", suffix)).pixels[8, 8]
    assert green > 190
    assert red < 90
    assert "cannot hold its colour profile" in caplog.text
    assert "converted to sRGB" in caplog.text


def test_high_dynamic_range_is_refused_by_formats_that_cannot_hold_it(
    upscale: Upscale, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd_files.BROWSER["pq_10.avif"](tmp_path / "a.avif")
    assert read_picture(upscale(tmp_path / "a.avif", ".png")).extras.colours is not None
    assert not upscale(tmp_path / "a.avif", ".jpg", status=1).exists()
    assert "high dynamic range" in capsys.readouterr().out


def test_adobe_rgb_declared_in_exif(upscale: Upscale, tmp_path: Path) -> None:
    """R03 is kept with the EXIF data; if the format cannot hold that, the colours are converted."""
    flat = np.full((16, 16, 3), (60, 200, 60), np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.jpg", quality=98, exif=b"Exif\0\0" + exif(interoperability=b"R03"))
    assert b"R03" in upscale(tmp_path / "a.jpg", ".png").read_bytes()
    red, green, _ = read_picture(upscale(tmp_path / "a.jpg", ".bmp")).pixels[8, 8].astype(int)
    assert red < 20
    assert green == pytest.approx(202, abs=4)


# Files from a bug report


def test_files_that_earlier_versions_converted_incorrectly(cases: Path, upscale: Upscale) -> None:
    grey = read_picture(upscale(cases / "grey12.tif", ".png")).pixels
    packed = np.frombuffer((cases / "grey12.tif").read_bytes()[8 : 8 + 4608], np.uint8).reshape(-1, 3).astype(int)
    first, second = packed[:, 0] << 4 | packed[:, 1] >> 4, (packed[:, 1] & 15) << 8 | packed[:, 2]
    stored = np.stack([first, second], 1).reshape(64, 48)
    assert np.array_equal(grey, repeated(np.rint(stored * (65535 / 4095)).astype(np.uint16)))
    samples = tifffile.imread(cases / "cmyk16_lzwless_planar.tif").astype(float)
    expected = (1 - samples[:3] / 65535) * (1 - samples[3] / 65535) * 65535
    rgb = read_picture(upscale(cases / "cmyk16_lzwless_planar.tif", ".png")).pixels
    assert np.abs(rgb - repeated(np.moveaxis(expected, 0, -1))).max() <= 1
    rgbx = read_picture(upscale(cases / "rgbx16.tif", ".png")).pixels
    assert np.array_equal(rgbx, repeated(tifffile.imread(cases / "rgbx16.tif")[..., :3]))
    with pytest.raises(DataError, match="raw file"):
        read_picture(cases / "IMG_0001.dng")
    animation = read_animation(cases / "anim_opaque_then_alpha.gif")
    assert animation
    assert {frame.shape[2] for frame in animation.frames()} == {4}
    turned = read_picture(upscale(cases / "xmp_orient.jpg"))
    assert (turned.size, turned.orientation) == ((96, 128), 1)
    colours = read_picture(upscale(cases / "gamma10.png")).extras.colours
    assert colours is not None
    assert colours.gamma == 1.0
    for suffix in ("jpg", "png", "tif"):
        resolution = read_picture(upscale(cases / f"dpi300.{suffix}")).extras.resolution
        assert resolution is not None
        assert round(resolution.x) == 600


# In a browser


@pytest.mark.slow
def test_outputs_look_like_inputs_in_chromium(weights: Path, tmp_path: Path) -> None:
    """For every unusual file that Chromium shows, the downscaled output looks like the input."""
    if browser.CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, write in odd_files.BROWSER.items():
        write(source / name.replace(".", f"_{Path(name).suffix[1:]}."))  # so that names stay distinct as PNG
    for suffix in (None, "png"):
        target = out / (suffix or "same")
        options = ["--weights", weights, "--device", "cpu", "--backend", "eager", "--quality", "100", "-o", target]
        options += ["--format", suffix] if suffix else []
        main([str(argument) for argument in (source, *options)])
    names = sorted(path.name for path in source.iterdir())
    inputs = dict(zip(names, browser.shown([source / name for name in names], tmp_path), strict=True))
    straight, premultiplied = "alpha_avif.avif", "premultiplied_avif.avif"
    for folder in ("same", "png"):
        # Chromium 156 reads the alpha plane of AVIF as limited range, although the file says full range. So an AVIF
        # output is compared with an AVIF that stores the same pixels straight, a PNG output with the pixels themselves.
        inputs[premultiplied] = inputs[straight] if folder == "same" else [odd_files.RGBA]
        inputs[straight] = inputs[premultiplied]
        outputs = {path.stem: path for path in (out / folder).iterdir()}
        missing = [name for name in names if Path(name).stem not in outputs]
        assert not missing
        found = names
        if folder == "png":  # for WebP, unlike other programs, Chromium ignores the orientation in EXIF data
            found = [name for name in found if not (name.startswith("exif") and name.endswith(".webp"))]
        results = browser.shown([outputs[Path(name).stem] for name in found], tmp_path)
        wrong = {
            name: worst
            for name, result in zip(found, results, strict=True)
            if (worst := _seen_difference(inputs[name], result)) > (15 if _is_steep(name) else 6)
        }
        assert not wrong


def _is_steep(name: str) -> bool:
    """Return whether one 8-bit level, the precision of Chromium's canvas, equals many sRGB levels in dark areas."""
    return name.endswith(".avif") and name.startswith(("linear", "pq"))


def _seen_difference(before: list[Array] | str, after: list[Array] | str) -> float:
    """Return the 99th percentile of the difference, the largest of all frames, on black and on white."""
    assert not isinstance(before, str), before
    assert not isinstance(after, str), after
    assert len(before) == len(after)
    worst = 0.0
    for small, large in zip(before, after, strict=True):
        height, width = small.shape[:2]
        if large.shape[:2] != (2 * height, 2 * width):
            return 255.0
        shrunk = browser.on_grounds(large).reshape(2, height, 2, width, 2, 3).mean((2, 4))
        worst = max(worst, float(np.percentile(np.abs(shrunk - browser.on_grounds(small)), 99)))
    return worst
