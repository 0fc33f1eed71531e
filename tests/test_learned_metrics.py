"""Metrics through pyiqa and torchmetrics: without the packages, without their weights, and with them."""

from __future__ import annotations

import importlib.util
import logging
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safmn import compat
from safmn.cli import score as score_command
from safmn.errors import DataError, OptionError
from safmn.evaluation.metric_choice import is_lower_better, sections
from safmn.imaging import write_image
from safmn.metrics import learned, psnr
from safmn.metrics.direction import lower_is_better
from safmn.metrics.fetching import DownloadRefused, only_local_files
from safmn.options.components import check_metric
from safmn.options.problems import Problems


def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (64, 72, 3), np.uint8)
    return a, (a * 0.9).astype(np.uint8)


def needs(package: str) -> None:
    compat.repair_torchvision()
    pytest.importorskip(package, reason=f"{package} is not installed (tests/requirements-extras.txt)")


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = ("pyiqa", "torchmetrics")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else real(name, *rest))
    learned._built.cache_clear()


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize(
    ("name", "package"),
    [("lpips", "pyiqa"), ("musiq", "pyiqa"), ("pyiqa:fsim", "pyiqa"), ("torchmetrics:lpips", "torchmetrics")],
)
def test_without_the_package_one_sentence_has_the_command(name: str, package: str) -> None:
    with pytest.raises(OptionError, match=rf"--metrics {name}: needs the package {package}: pip install {package}"):
        sections([name], 4)


@pytest.mark.usefixtures("without_packages")
def test_an_option_file_is_refused_before_the_training() -> None:
    problems = Problems("my.yml")
    assert check_metric({"type": "dists", "crop_border": 4}, ("val", "metrics", "d"), problems)
    with pytest.raises(OptionError, match=r"my\.yml: val\.metrics\.d: needs the package pyiqa"):
        problems.raise_all()


@pytest.mark.usefixtures("without_packages")
def test_the_function_itself_says_it_too() -> None:
    with pytest.raises(OptionError, match="metric lpips needs the package torchmetrics: pip install torchmetrics"):
        learned.lpips(*images(), package="torchmetrics")


def test_directions() -> None:
    assert lower_is_better({"type": "lpips"})
    assert not lower_is_better({"type": "lpips", "better": "higher"})
    assert not lower_is_better({"type": "musiq"})
    assert not lower_is_better({"type": "calculate_psnr"})
    assert lower_is_better({"type": "unheard", "better": "lower"})
    assert is_lower_better({"type": "calculate_niqe"})


def test_downloads_are_refused_with_the_place_of_the_file(tmp_path: Path) -> None:
    def download(url: str) -> None:
        download_target = tmp_path / "clip.pt"
        with urllib.request.urlopen(url) as source:
            download_target.write_bytes(source.read())

    target = str(tmp_path / "alexnet.pth")
    with only_local_files("metric x"):
        with pytest.raises(
            DownloadRefused, match=r"metric x: the file https://a/alexnet\.pth .* put it at .*alexnet\.pth"
        ):
            torch.hub.download_url_to_file("https://a/alexnet.pth", target)
        with pytest.raises(DownloadRefused, match=r"put it at .*clip\.pt, or allow the download"):
            download("https://a/clip.pt")
    assert not list(tmp_path.iterdir())


def test_pyiqa_counts_as_ours_where_both_have_the_metric(caplog: pytest.LogCaptureFixture) -> None:
    needs("pyiqa")
    learned.say_licence.cache_clear()
    learned._built.cache_clear()
    a, b = images()
    with caplog.at_level(logging.WARNING):
        found = learned.pyiqa(a, b, metric="psnr", crop_border=3)
    assert found == pytest.approx(psnr(a, b, crop=3), abs=1e-3)
    assert "PolyForm-Noncommercial" in caplog.text
    with pytest.raises(OptionError, match="Did you mean 'psnr'"):
        learned.pyiqa(a, b, metric="psnrr")
    with pytest.raises(DataError, match="needs a GT image"):
        learned.pyiqa(a, metric="psnr")
    with pytest.raises(DataError, match="same shape"):
        learned.pyiqa(a, b[:-1], metric="psnr")


def test_missing_weights_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    needs("torchmetrics")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    learned._built.cache_clear()
    for folder in ("gt", "made"):
        write_image(tmp_path / folder / "a.png", images()[folder == "made"])
    command = [str(tmp_path / "made"), "--gt", str(tmp_path / "gt"), "--metrics", "torchmetrics:lpips"]
    assert score_command.main(command) == 2
    error = capfd.readouterr().err
    assert "https://download.pytorch.org/models/alexnet" in error
    assert f"put it at {tmp_path / 'hub' / 'checkpoints' / 'alexnet'}" in error


def test_weights_at_the_named_place_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("torchmetrics")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import AlexNet_Weights, alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    learned._built.cache_clear()
    torch.manual_seed(0)
    place = tmp_path / "hub" / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    place.parent.mkdir(parents=True)
    torch.save(alexnet().state_dict(), place)  # random weights: only that they are used is tested
    a, b = images()
    found = learned.lpips(a, b, crop_border=4, package="torchmetrics")
    reference: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    tensors = [
        torch.from_numpy(image[4:-4, 4:-4, ::-1].copy()).permute(2, 0, 1)[None].float() / 255 for image in (a, b)
    ]
    assert found == pytest.approx(float(reference(*tensors)), rel=1e-5)
    assert learned.lpips(a, a, package="torchmetrics") == pytest.approx(0, abs=1e-6)
    assert learned.lpips(a[..., 0], b[..., 0], package="torchmetrics") > 0
