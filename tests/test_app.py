"""``safmn app``: what the page does with files, and the page itself in headless Chromium."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage import data

from safmn.app.work import AUTOMATIC, Choice, Outcome, Workshop
from safmn.cli import main
from safmn.cli.upscale import main as cli_upscale
from safmn.errors import WeightsError

PHOTO = np.asarray(data.astronaut())[100:164, 180:260]  # 80x64
X2 = Choice("safmn-x2")


def _run(folder: Path, *files: Path, choice: Choice = X2, max_pixels: int = 10_000) -> list[Outcome]:
    shop = Workshop(folder, device="cpu", max_pixels=max_pixels)
    return shop.run(files, choice, lambda part, name: None)


def _photo(path: Path, **more: Any) -> Path:
    Image.fromarray(PHOTO).save(path, **more)
    return path


def test_the_result_has_the_format_and_the_notes_of_the_upload(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = _photo(tmp_path / "a.jpg", exif=exif, icc_profile=profile, quality=95)
    parts: list[float] = []
    shop = Workshop(tmp_path / "results", device="cpu", max_pixels=10_000)
    [outcome] = shop.run([file], X2, lambda part, name: parts.append(part))
    assert outcome.result is not None
    assert outcome.result.name == "a.jpg"
    with Image.open(outcome.result) as result:
        assert result.format == "JPEG"
        assert result.size == (160, 128)
        assert result.getexif()[0x010F] == "a camera"
        assert result.info["icc_profile"] == profile
    assert "80x64 to 160x128" in outcome.text
    assert outcome.pair is not None
    shown = [np.asarray(Image.open(path)) for path in outcome.pair]
    assert [image.shape for image in shown] == [(160, 128, 3)] * 2  # upright
    assert 0 < np.abs(shown[0].astype(int) - shown[1]).mean() < 12  # the same picture, bicubic and enlarged by SAFMN
    assert parts[0] == 0
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1)


def test_what_cannot_be_enlarged_is_said_and_does_not_stop_the_rest(tmp_path: Path) -> None:
    broken, film = tmp_path / "broken.png", tmp_path / "film.mp4"
    broken.write_bytes(b"no image at all")
    film.write_bytes(b"\0\0\0\x18ftypmp42")
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((200, 100, 3), np.uint8)).save(large)
    files = (broken, film, large, _photo(tmp_path / "good.png"))
    found = _run(tmp_path / "results", *files)
    assert [outcome.name for outcome in found] == [file.name for file in files]
    assert [outcome.result is not None for outcome in found] == [False, False, False, True]
    assert "not an image" in found[0].text
    assert "safmn upscale" in found[1].text
    assert "10000" in found[2].text.replace(",", "") or "10,000" in found[2].text
    assert not any(str(tmp_path) in outcome.text for outcome in found)  # visitors see names, not folders


def test_transparency_and_depth_are_kept_and_shown_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([PHOTO, np.where(np.arange(80) < 40, 0, 255)[None].repeat(64, 0).astype(np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.webp", lossless=True)
    [outcome] = _run(tmp_path / "results", tmp_path / "a.webp")
    assert outcome.result is not None
    assert outcome.pair is not None
    with Image.open(outcome.result) as result:
        assert (result.mode, result.format) == ("RGBA", "WEBP")
    assert (np.asarray(Image.open(outcome.pair[1]))[:, :60] == 255).all()


def test_the_switches_reach_the_upscaler(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, device="cpu", max_pixels=10_000)
    upscaler = shop.upscaler(Choice("safmn-x4", ensemble=True, whole=True))
    assert (upscaler.scale, upscaler.self_ensemble, upscaler.tile) == (4, True, 0)
    assert shop.upscaler(Choice("safmn-x4", ensemble=True, whole=True)) is upscaler
    with pytest.raises(WeightsError, match="absent"):
        shop.upscaler(Choice("absent"))


def test_weights_are_chosen_for_each_image_and_the_reason_is_said(tmp_path: Path) -> None:
    clean, compressed = _photo(tmp_path / "clean.png"), _photo(tmp_path / "compressed.jpg", quality=20)
    found = _run(tmp_path / "results", clean, compressed, tmp_path / "absent.png", choice=Choice(AUTOMATIC))
    assert "80x64 to 160x128" in found[0].text
    assert found[0].text.endswith("Weights: safmn-x2 (no sign of noise or compression).")
    assert found[1].text.endswith("Weights: safmn-x2-real (JPEG of quality 20).")
    assert "Weights" not in found[2].text
    for outcome, name in zip(found, ("clean.png", "compressed.jpg"), strict=False):
        assert cli_upscale([str(tmp_path / name), "-o", str(tmp_path / "by_command" / name)]) == 0
        assert outcome.result is not None
        assert outcome.result.read_bytes() == (tmp_path / "by_command" / name).read_bytes()


def test_without_gradio_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert "pip install 'gradio>=6'" in capsys.readouterr().err


HAS_PAGE = (
    all(importlib.util.find_spec(name) for name in ("gradio", "selenium"))
    and browser.CHROMIUM is not None
    and shutil.which("chromedriver") is not None
)
needs_page = pytest.mark.skipif(
    not HAS_PAGE, reason="needs Chromium, chromedriver and: pip install -r tests/requirements-extras.txt"
)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A running ``safmn app``, whose folder of uploads is below tmp_path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "safmn", "app", "--no-browser", "--port", str(port), "--max-pixels", "20000"]
    (tmp_path / "served").mkdir()
    variables = {**os.environ, "TMPDIR": str(tmp_path / "served"), "GRADIO_SERVER_NAME": "0.0.0.0"}
    with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(240):
                time.sleep(0.5)
                assert server.poll() is None, "safmn app ended"
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
                    break
                except OSError:
                    continue
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    assert not list((tmp_path / "served").glob("safmn_app_*"))  # uploads and results are deleted


@pytest.fixture
def driver() -> Iterator[Any]:
    """Headless Chromium with a log of its requests."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(browser.CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.add_argument("--disable-background-networking")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def _status(driver: Any, files: list[Path]) -> str:
    """Upload files, press the button, and return what the page says at the end."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def texts(found: str) -> list[str]:
        return [element.text for element in driver.find_elements(By.CSS_SELECTOR, found) if element.text]

    wait = WebDriverWait(driver, 120)
    wait.until(lambda d: d.find_elements(By.ID, "start"))
    driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys("\n".join(map(str, files)))
    wait.until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "tr.file")) == len(files))
    driver.find_element(By.ID, "start").click()
    wait.until(lambda d: texts("#status li"))
    return "\n".join(texts("#status li"))


@needs_page
@pytest.mark.slow
def test_the_page_enlarges_what_is_dropped_and_asks_nothing_of_the_outside(
    address: str, driver: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((400, 100, 3), np.uint8)).save(large)
    driver.get(address)
    wait = WebDriverWait(driver, 120)
    wait.until(lambda d: d.find_elements(By.ID, "start"))
    driver.find_element(By.ID, "start").click()
    wait.until(lambda d: "Drop an image first" in d.find_element(By.ID, "status").text)
    assert "Automatic" in driver.find_element(By.CSS_SELECTOR, "label.selected").text
    said = _status(driver, [_photo(tmp_path / "photo.png"), bad, large])
    assert "photo.png: 80x64 to 160x128" in said
    assert "Weights: safmn-x2 (no sign of noise or compression)." in said
    assert "failed: bad.jpg" in said
    assert "failed: large.png" in said
    images = driver.find_elements(By.CSS_SELECTOR, "#slider img")
    assert len(images) >= 2
    link = driver.find_element(By.CSS_SELECTOR, "#results a[href*='photo.png']").get_attribute("href")
    with urllib.request.urlopen(link) as answer, Image.open(answer) as result:
        assert result.size == (160, 128)
        expected = _run(tmp_path / "results", tmp_path / "photo.png")[0].result
        assert expected is not None
        assert np.array_equal(np.asarray(result), np.asarray(Image.open(expected)))
    requests = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [entry["params"]["request"]["url"] for entry in requests if entry["method"] == "Network.requestWillBeSent"]
    assert len(urls) > 5
    assert all(url.startswith((address, "data:", "blob:", "chrome")) for url in urls)
