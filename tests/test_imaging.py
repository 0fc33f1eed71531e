"""Read, write, convert, crop and augment images."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from safmn.errors import DataError
from safmn.imaging import (
    augment,
    crop_border,
    decode_rgb,
    image_size,
    list_images,
    mod_crop,
    read_image,
    read_rgb,
    rgb_to_y,
    to_tensor,
    to_uint8,
    write_image,
)
from safmn.imaging import io as io_module

LOSSLESS = [".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"]


@pytest.fixture
def photo() -> np.ndarray:
    """Return a real photograph, (300, 451, 3) RGB."""
    skimage_data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(skimage_data.cat())


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_round_trip(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    path = tmp_path / "new" / f"a photo ü{suffix}"
    write_image(path, photo)
    np.testing.assert_array_equal(read_rgb(path), photo)
    np.testing.assert_array_equal(read_image(path), photo)
    np.testing.assert_array_equal(np.asarray(Image.open(path).convert("RGB")), photo)  # RGB order also in the file
    assert image_size(path) == photo.shape[:2]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lower_quality_gives_smaller_files(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    sizes = []
    for quality in (30, 95):
        write_image(tmp_path / f"photo{suffix}", photo, quality=quality)
        read = read_rgb(tmp_path / f"photo{suffix}").astype(float)
        assert 0 < np.abs(read - photo).mean() < 10
        sizes.append((tmp_path / f"photo{suffix}").stat().st_size)
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("suffix", [".gif", ".avif"])
def test_formats_that_only_pillow_reads(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    try:
        Image.fromarray(photo).save(path)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow cannot write {suffix}")
    image = read_rgb(path)
    assert image.shape == photo.shape
    assert np.abs(image.astype(float) - photo).mean() < 12


def test_grey_alpha_palette_and_sixteen_bits(tmp_path: Path, photo: np.ndarray) -> None:
    grey = photo[..., 0]
    write_image(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), grey)
    np.testing.assert_array_equal(read_rgb(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))
    rgba = np.dstack([photo, grey])
    write_image(tmp_path / "rgba.png", rgba)
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), rgba)
    np.testing.assert_array_equal(read_rgb(tmp_path / "rgba.png"), photo)
    deep = photo.astype(np.uint16) * 257
    write_image(tmp_path / "deep.png", deep)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), deep)
    np.testing.assert_array_equal(read_rgb(tmp_path / "deep.png"), photo)
    palette = Image.fromarray(photo).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_images_are_read_upright(tmp_path: Path, photo: np.ndarray, suffix: str, orientation: int) -> None:
    image = Image.fromarray(photo)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"rotated.{suffix}"
    image.save(path, exif=exif, quality=95)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.abs(read_rgb(path).astype(int) - expected).max() <= (0 if suffix == "png" else 6)
    np.testing.assert_array_equal(read_image(path), read_rgb(path))
    assert image_size(path) == expected.shape[:2]
    np.testing.assert_array_equal(read_rgb(path), cv2.imread(str(path))[..., ::-1])  # as BasicSR reads it


def test_tiff_of_other_types_is_refused_and_orientation_applied_once(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    for pixels in (photo[..., 0] / np.float32(255), photo[..., 0].astype(np.int32) * 257):
        tifffile.imwrite(path, pixels)
        for read in (read_rgb, read_image):
            with pytest.raises(DataError, match=r"a\.tif.*TIFF.*(float32|int32).*convert"):
                read(path)
    tifffile.imwrite(path, photo, photometric="rgb", software="EXIF writer", extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(read_rgb(path), np.rot90(photo, -1))


def test_jpeg_with_thumbnail_is_complete(photo: np.ndarray) -> None:
    """A thumbnail in the header has its own end-of-image marker before that of the image; it is not the end."""
    small, large = io.BytesIO(), io.BytesIO()
    Image.fromarray(photo[:40, :40]).save(small, "jpeg")
    Image.fromarray(photo).save(large, "jpeg")
    segment = b"Exif\0\0" + small.getvalue()
    data = large.getvalue()
    data = data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    assert decode_rgb(data, "with thumbnail").shape == photo.shape
    with pytest.raises(DataError, match=r"cut\.jpg.*truncated"):
        decode_rgb(data[: len(data) * 3 // 4], "cut.jpg")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_jpeg_with_a_trailer_is_complete(photo: np.ndarray, options: dict[str, Any]) -> None:
    """In motion photos a video follows the image, and its bytes may look like markers; they are ignored."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "jpeg", **options)
    data = file.getvalue()
    for trailer in (b"", b"\0\xff\xda\0", b"\xff\xd9"):
        assert decode_rgb(data + trailer, "motion.jpg").shape == photo.shape
    with pytest.raises(DataError, match=r"cut\.jpg.*truncated"):
        decode_rgb(data[:-2], "cut.jpg")
    with pytest.raises(DataError, match=r"cut\.jpg.*truncated"):
        decode_rgb(data[: len(data) // 3], "cut.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 0.99])
def test_cut_files_are_named(tmp_path: Path, photo: np.ndarray, suffix: str, share: float) -> None:
    path = tmp_path / f"cut{suffix}"
    write_image(path, photo)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for read in (read_rgb, read_image):
        with pytest.raises(DataError, match=f"cut\\{suffix}"):
            read(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image at all")
    for read in (read_rgb, read_image, image_size):
        with pytest.raises(DataError, match=r"text\.png"):
            read(tmp_path / "text.png")
        with pytest.raises(DataError, match=r"missing\.png"):
            read(tmp_path / "missing.png")
    with pytest.raises(DataError, match="cannot be read"):
        read_rgb(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.png"
    write_image(path, photo)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(path, photo[::-1])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.xyz", np.zeros((4, 4, 3), np.uint8)),
        ("a.gif", np.zeros((4, 4, 3), np.uint8)),
        ("a.png", np.zeros((4, 4, 3), np.float32)),
        ("a.jpg", np.zeros((4, 4, 3), np.uint16)),
        ("a.png", np.zeros((4, 4, 2), np.uint8)),
        ("a.png", np.zeros((0, 4, 3), np.uint8)),
        ("a.jpg", np.zeros((2, 70000), np.uint8)),
    ],
)
def test_errors_name_the_file_that_cannot_be_written(tmp_path: Path, name: str, image: np.ndarray) -> None:
    with pytest.raises(DataError, match=name):
        write_image(tmp_path / name, image)
    assert not list(tmp_path.iterdir())


def test_list_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "none")
    with pytest.raises(DataError, match="no image"):
        list_images(tmp_path)
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png", "c.webp"]


def test_y_channel_equals_that_of_matlab_and_basicsr(photo: np.ndarray) -> None:
    from basicsr.utils.color_util import bgr2ycbcr

    corners = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(rgb_to_y(corners), [[16, 235, 81.481, 144.553, 40.966]], atol=1e-12)
    theirs = bgr2ycbcr(photo[..., ::-1].astype(np.float32) / 255, y_only=True) * 255
    y = rgb_to_y(photo)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, theirs, atol=1e-4)
    np.testing.assert_array_equal(rgb_to_y(photo.astype(np.float32)), y)
    with pytest.raises(DataError, match="rgb_to_y"):
        rgb_to_y(photo[..., 0])


def test_tensor_round_trip(photo: np.ndarray) -> None:
    tensor = to_tensor(photo)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, *photo.shape[:2])
    np.testing.assert_array_equal(tensor.numpy(), photo.transpose(2, 0, 1).astype(np.float32) / 255)
    np.testing.assert_array_equal(to_uint8(tensor), photo)
    np.testing.assert_array_equal(to_uint8(torch.stack([tensor, tensor.flip(1)])), np.stack([photo, photo[::-1]]))
    assert to_tensor(photo[..., 0]).shape == (1, *photo.shape[:2])
    assert to_tensor(augment(photo, True, True, True)).is_contiguous()
    assert to_tensor(augment(photo[:1, :1], True, True, True)).shape == (3, 1, 1)
    for wrong in (photo.astype(np.float32), photo[None]):
        with pytest.raises(DataError, match="to_tensor"):
            to_tensor(wrong)
    with pytest.raises(DataError, match="to_uint8"):
        to_uint8(tensor[0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_to_uint8_equals_basicsrs_tensor2img(seed: int) -> None:
    from basicsr.utils import tensor2img

    values = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
    values[0, 0] = (torch.arange(11) + 0.5) / 255  # at or near rounding ties
    np.testing.assert_array_equal(to_uint8(values), tensor2img(values, rgb2bgr=False))


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), number=st.integers(0, 12))
def test_crops(height: int, width: int, number: int) -> None:
    image = np.arange(height * width).reshape(height, width)
    if 1 <= number <= min(height, width):
        cropped = mod_crop(image, number)
        assert [side % number for side in cropped.shape] == [0, 0]
        assert height - cropped.shape[0] < number > width - cropped.shape[1]
        np.testing.assert_array_equal(cropped, image[: cropped.shape[0], : cropped.shape[1]])
    else:
        with pytest.raises(DataError, match="mod_crop"):
            mod_crop(image, number)
    if 2 * number < min(height, width):
        np.testing.assert_array_equal(np.pad(crop_border(image, number), number), _blank_border(image, number))
    else:
        with pytest.raises(DataError, match="crop_border"):
            crop_border(image, number)


def _blank_border(image: np.ndarray, border: int) -> np.ndarray:
    rows, columns = np.indices(image.shape)
    height, width = image.shape
    inside = (rows >= border) & (rows < height - border) & (columns >= border) & (columns < width - border)
    return np.where(inside, image, 0)


def test_augment_has_basicsrs_order_and_gives_all_eight_results(photo: np.ndarray) -> None:
    seen = set()
    for number in range(8):
        hflip, vflip, rot90 = bool(number & 1), bool(number & 2), bool(number & 4)
        expected = photo
        if hflip:
            expected = cv2.flip(expected, 1)
        if vflip:
            expected = cv2.flip(expected, 0)
        if rot90:
            expected = expected.transpose(1, 0, 2)
        made = augment(photo, hflip, vflip, rot90)
        np.testing.assert_array_equal(made, expected)
        seen.add(made.tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize("depth", [10, 12])
def test_deep_avif_keeps_its_brightness(depth: int, tmp_path: Path) -> None:
    """OpenCV decodes it as 16 bits with values up to 1023 or 4095, which must be scaled to 65535."""
    image = (ramp() * (2**depth - 1)).round().astype(np.uint16)
    options = [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 95]
    assert cv2.imwrite(str(tmp_path / "a.avif"), image, options)
    found = read_image(tmp_path / "a.avif")
    assert found.dtype == np.uint16
    assert np.array_equal(found, read_rgb(tmp_path / "a.avif", deep=True))
    assert np.array_equal(found >> 8, read_rgb(tmp_path / "a.avif"))
    assert abs(found.mean() / 65535 - ramp().mean()) < 0.005


def ramp() -> np.ndarray:
    """Return values that rise from 0 to 1, (48, 64, 3)."""
    return np.linspace(0, 1, 48 * 64 * 3).reshape(48, 64, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_an_image_with_a_huge_stated_size_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb{suffix}"
    image = np.zeros((17, 23, 3), np.uint8)
    write_image(path, image)
    if suffix == ".tif":
        cv2.imwrite(str(path), image, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    data = bytearray(path.read_bytes())
    if suffix == ".png":
        data[16:24] = struct.pack(">II", 50_000, 50_000)
    elif suffix == ".jpg":
        place = data.index(b"\xff\xc0")
        data[place + 5 : place + 9] = struct.pack(">HH", 50_000, 50_000)
    elif suffix == ".bmp":
        data[18:26] = struct.pack("<ii", 50_000, 50_000)
    else:
        for tag in (256, 257):
            place = data.index(struct.pack("<HHI", tag, 3, 1))
            data[place + 8 : place + 12] = struct.pack("<I", 50_000)
    path.write_bytes(data)
    for read in (read_rgb, read_image):
        with pytest.raises(DataError, match="decompression bomb"):
            read(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_stated_size_is_that_of_the_image(suffix: str) -> None:
    """The size is found in progressive files, and behind long EXIF data."""
    done, data = cv2.imencode(suffix, np.zeros((17, 23, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert done
    assert io_module._stated_size(data.tobytes()) == (23, 17)
    with_exif = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "x" * 5000
    Image.new("RGB", (300, 5)).save(with_exif, {".jpg": "jpeg", ".png": "png"}[suffix], exif=exif)
    assert io_module._stated_size(with_exif.getvalue()) == (300, 5)


def deep_photo(photo: np.ndarray) -> np.ndarray:
    """Return a 16-bit image with values that are not multiples of 257, so not just widened 8 bits."""
    return photo.astype(np.uint16) * 250 + 3


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_more_than_8_bits_are_kept_on_request(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    deep = deep_photo(photo)
    write_image(tmp_path / f"a{suffix}", deep)
    kept = read_rgb(tmp_path / f"a{suffix}", deep=True)
    np.testing.assert_array_equal(kept, deep)
    np.testing.assert_array_equal(read_rgb(tmp_path / f"a{suffix}"), deep >> 8)
    np.testing.assert_array_equal(to_tensor(kept).numpy(), deep.transpose(2, 0, 1).astype(np.float32) / 65535)
    write_image(tmp_path / f"b{suffix}", deep[..., 0])
    np.testing.assert_array_equal(read_rgb(tmp_path / f"b{suffix}", deep=True)[..., 2], deep[..., 0])
    write_image(tmp_path / f"c{suffix}", photo)  # 8 bits stay 8 bits
    assert read_rgb(tmp_path / f"c{suffix}", deep=True).dtype == np.uint8


def test_tiff_for_training_is_read_by_its_tags(tmp_path: Path, photo: np.ndarray) -> None:
    """The thumbnail is skipped, planes are joined, the orientation is applied, and 12 bits are scaled to 16."""
    small = photo[:64, :48]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(small[::4, ::4].copy(), photometric="rgb", subfiletype=1, metadata=None)
        tags = [(274, "H", 1, 6, True)]
        planes = np.moveaxis(small.astype(np.uint16) * 16, -1, 0).copy()
        options = {"photometric": "rgb", "planarconfig": "separate", "bitspersample": 16, "extratags": tags}
        file.write(planes, metadata=None, **options)
    assert image_size(tmp_path / "a.tif") == (48, 64)
    found = read_rgb(tmp_path / "a.tif", deep=True)
    np.testing.assert_array_equal(found, np.rot90(small.astype(np.uint16) * 16, -1))
    grey = (small[..., 1].astype(np.uint16) << 4) | 7
    tifffile.imwrite(tmp_path / "b.tif", grey, photometric="minisblack", bitspersample=12, metadata=None)
    expected = np.rint(grey * (65535 / 4095)).astype(np.uint16)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), expected)
    np.testing.assert_array_equal(read_rgb(tmp_path / "b.tif", deep=True)[..., 0], expected)


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_the_rotation_of_avif_is_applied(tmp_path: Path, photo: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(tmp_path / "a.avif", exif=exif, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.avif")))
    assert np.abs(read_rgb(tmp_path / "a.avif").astype(int) - expected).mean() < 3
    assert image_size(tmp_path / "a.avif") == expected.shape[:2]


def test_the_orientation_in_xmp_is_ignored(tmp_path: Path, photo: np.ndarray) -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    Image.fromarray(photo).save(tmp_path / "a.jpg", xmp=packet, exif=exif)
    assert read_rgb(tmp_path / "a.jpg").shape == photo.shape
    assert image_size(tmp_path / "a.jpg") == photo.shape[:2]
