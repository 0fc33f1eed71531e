"""The state of images (quality, blocks, noise), and the weights that ``safmn upscale`` takes by itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from skimage import data

from safmn.cli.upscale import main
from safmn.data.drawing import KINDS
from safmn.imaging import imresize, read_rgb, write_image
from safmn.inference import suited
from safmn.inference.condition import examine, jpeg_quality, quality_of, suitable
from safmn.inference.suited import Suited


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A clean image of 192x288 pixels."""
    return imresize(data.coffee()[:384, :576], 0.5)


def compressed(image: np.ndarray, quality: int, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, **more)
    return file.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("quality", [5, 30, 49, 50, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_file_is_read_from_its_tables(
    photograph: np.ndarray, tmp_path: Path, quality: int
) -> None:
    for number, more in enumerate(({}, {"progressive": True}, {"subsampling": 0})):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(compressed(photograph[:64, :64], quality, **more))
        assert quality_of(path) == quality
    grey = tmp_path / "grey.jpg"
    Image.fromarray(photograph[:64, :64, 0]).save(grey, quality=quality)
    assert quality_of(grey) == quality


def test_other_files_have_no_quality(photograph: np.ndarray, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", photograph)
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    assert [quality_of(tmp_path / name) for name in ("a.png", "b.jpg", "none.png")] == [None] * 3
    assert jpeg_quality({}) is None


def test_noise_is_told_from_texture(photograph: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    grass, stripes = data.grass()[:256, :256], np.tile([0, 255], (128, 64)).astype(np.uint8)
    for clean in (photograph, grass, np.repeat(stripes[..., None], 3, axis=2), np.full((64, 64, 3), 200, np.uint8)):
        assert "noise of" not in suitable(examine(clean))[1]  # grass was a JPEG file of quality 90
    for sigma in (10, 20):
        noisy = np.clip(np.rint(photograph + rng.normal(0, sigma, photograph.shape)), 0, 255).astype(np.uint8)
        real, why = suitable(examine(noisy))
        assert real
        assert "noise of about" in why
        assert examine(noisy).colour.plain == pytest.approx(sigma, rel=0.35)  # the darkest parts are clipped
        deep = suitable(examine(noisy.astype(np.uint16) * 257))
        assert deep == (real, why)
    grey = np.clip(np.rint(photograph + rng.normal(0, 20, (*photograph.shape[:2], 1))), 0, 255).astype(np.uint8)
    assert suitable(examine(grey))[0]
    assert suitable(examine(grey[..., 0]))[0]


@pytest.mark.parametrize("quality", [20, 30, 50, 75])
def test_the_quality_of_an_earlier_compression_is_found(photograph: np.ndarray, quality: int) -> None:
    image = decoded(compressed(photograph, quality))
    assert examine(image).earlier == pytest.approx(quality, abs=1)
    assert examine(image.astype(np.uint16) * 257).earlier == examine(image).earlier
    grey = decoded(compressed(photograph[..., 1], quality))
    assert examine(grey[..., 0]).earlier == pytest.approx(quality, abs=1)
    again = decoded(compressed(image, 92))
    assert examine(again, 92).earlier == pytest.approx(quality, abs=1)
    assert suitable(examine(again, 92))[0]
    assert examine(np.maximum(image, 128)).earlier in (None, pytest.approx(quality, abs=8))  # most blocks are cut


def test_images_that_were_never_compressed_show_no_quality(photograph: np.ndarray) -> None:
    drawings = [KINDS[kind][0](np.random.default_rng(seed), 192) for kind in sorted(KINDS) for seed in (0, 1)]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)
    stripes = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (64, 8))[..., None].repeat(3, axis=2)
    for image in (photograph, noise, stripes, data.grass(), data.brick(), *drawings):
        assert examine(image).earlier is None


def test_blocks_of_an_earlier_compression_are_found_wherever_they_begin(photograph: np.ndarray) -> None:
    image = decoded(compressed(photograph, 25))
    assert suitable(examine(image)) == (True, "JPEG of quality 25 before")
    assert suitable(examine(image[3:, 5:])) == (True, "blocks of an earlier JPEG compression")
    assert suitable(examine(image, 25)) == (True, "JPEG of quality 25")
    assert not examine(photograph).blocked
    chess = np.kron(np.indices((24, 24)).sum(axis=0) % 2, np.ones((8, 8)))
    assert not examine((255 * chess).astype(np.uint8)[:40, :40]).blocked  # too few borders to tell


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (9, 9, 3), (17, 40), (300, 2, 3), (8, 8, 4)])
def test_images_of_any_size_can_be_examined(shape: tuple[int, ...]) -> None:
    assert suitable(examine(np.zeros(shape, np.uint8)))[0] is False


class Fake:
    """Stands for an Upscaler."""

    def __init__(self, weights: str) -> None:
        self.weights = weights


def test_weights_for_photographs_are_loaded_when_needed(
    photograph: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built: list[str] = []

    def build(weights: str) -> Any:
        built.append(weights)
        return Fake(weights)

    caplog.set_level("INFO", logger="safmn.weights")
    choose = Suited(build)
    write_image(tmp_path / "clean.png", photograph)
    assert choose.for_picture(tmp_path / "clean.png", photograph) is choose.clean
    assert built == ["safmn-x2"]
    poor = tmp_path / "poor.jpg"
    poor.write_bytes(compressed(photograph, 40))
    upscaler = choose.for_picture(poor, decoded(poor.read_bytes()))
    assert cast(Any, upscaler).weights == "safmn-x2-real"
    assert choose.for_picture(poor, decoded(poor.read_bytes())) is upscaler
    assert built == ["safmn-x2", "safmn-x2-real"]
    rgba = np.dstack([decoded(poor.read_bytes()), np.full(photograph.shape[:2], 9, np.uint8)])
    assert choose.for_picture(poor, rgba) is choose.clean
    assert choose.for_frames(tmp_path / "a.gif", "an animation") is choose.clean
    assert "a.gif: safmn-x2 (an animation, which is not examined)" in caplog.text
    assert "clean.png: safmn-x2 (no sign of noise or compression)" in caplog.text
    assert "poor.jpg: safmn-x2-real (JPEG of quality 40)" in caplog.text


def test_the_command_chooses_for_each_image_unless_weights_are_given(
    photograph: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    write_image(folder / "clean.png", photograph[:40, :48])
    (folder / "poor.jpg").write_bytes(compressed(photograph[:40, :48], 30))
    assert main([str(folder), "-o", str(tmp_path / "out"), "--backend", "eager", "--format", "png"]) == 0
    assert "clean.png: safmn-x2 (" in caplog.text
    assert "poor.jpg: safmn-x2-real (JPEG of quality 30)" in caplog.text
    assert {read_rgb(path).shape for path in (tmp_path / "out").iterdir()} == {(80, 96, 3)}
    monkeypatch.setattr(suited, "suitable", lambda condition: pytest.fail("examined"))
    command = [str(folder), "-o", str(tmp_path / "given"), "--backend", "eager", "--format", "png"]
    assert main([*command, "--weights", "safmn-x2"]) == 0
    clean, poor = (read_rgb(tmp_path / "given" / f"{name}.png") for name in ("clean", "poor"))
    assert np.array_equal(clean, read_rgb(tmp_path / "out" / "clean.png"))
    assert not np.array_equal(poor, read_rgb(tmp_path / "out" / "poor.png"))
