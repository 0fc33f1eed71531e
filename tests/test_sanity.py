"""The check before training finds faults early, and leaves no trace in the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from torch import Tensor, nn

from safmn.data import PairedImageDataset
from safmn.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY
from safmn.train import main


class Drawing(PairedImageDataset):
    """Changes when it is read, and draws from the global generators."""

    read = 0

    def sample(self, index: int, rng: Any) -> Any:
        self.read += 1
        sample = super().sample(index, rng)
        sample["lq"] = sample["lq"] + self.read * 1e-3
        return sample

    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        item["lq"] = item["lq"] + torch.rand(1) * 1e-3
        return item


class Noisy(nn.Module):
    """Draws in its constructor and in its forward pass, and has buffers that change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout2d(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.last(self.drop(self.norm(self.first(x)))), 2)


def run(folder: Path, content: dict[str, Any], *arguments: str) -> int:
    content["path"]["experiments_root"] = str(folder / "experiments")
    folder.mkdir(exist_ok=True)
    return main(["-opt", str(tiny_run.write_options(folder, content)), *arguments])


def configured(kind: str, images: Path) -> dict[str, Any]:
    if kind == "GAN":
        content = tiny_run.real_options(images, images, "RealGANModel", 1)
        content["train"]["net_d_init_iters"] = 2
    else:
        content = tiny_run.options(images)
        content["network_g"] = {"type": "Noisy"}
        for section in content["datasets"].values():
            section["type"] = "Drawing"
        content["datasets"]["train"]["num_worker_per_gpu"] = int(kind == "workers")
    content["train"] |= {"total_iter": 4}
    content["train"]["scheduler"]["periods"] = [4]
    content["val"]["val_freq"] = 2
    return content


@pytest.fixture(autouse=True)
def own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Noisy", Noisy)
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Drawing", Drawing)


@pytest.mark.parametrize("kind", ["own", "workers", "GAN"])
def test_a_run_has_the_same_bytes_with_and_without(
    kind: str, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prints = []
    for sanity in (True, False):
        content = configured(kind, images) | {"sanity": sanity}
        assert run(tmp_path / str(sanity), content) == 0
        found = tiny_run.fingerprint(tmp_path / str(sanity))
        assert len(found) > 4
        prints.append(
            {name: value for name, value in found.items() if not name.endswith(("state.json", "manifest.json"))}
        )
        log = (tmp_path / str(sanity) / "experiments/tiny/train_tiny.log").read_text()
        assert ("sanity: one batch trained on a copy, one image of val" in log) == sanity
    assert prints[0] == prints[1]


def test_a_metric_without_a_finite_value_shows_before_training(images: Path, tmp_path: Path) -> None:
    METRIC_REGISTRY.register(suffix="sanity")(undefined)
    content = tiny_run.options(images, total_iter=1)
    content["val"]["metrics"] = {"nothing": {"type": "undefined_sanity"}}
    assert run(tmp_path, content) == 0
    log = (tmp_path / "experiments/tiny/train_tiny.log").read_text()
    assert log.index("sanity: metric 'nothing' is nan for ") < log.index("sanity: one batch")


def undefined(img: np.ndarray) -> float:
    return float("nan")


def test_a_faulty_metric_shows_before_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It leaves the folder of an older run alone. With ``sanity: false`` it shows at the first validation."""
    content = configured("own", images)
    content["datasets"]["train"]["type"] = content["datasets"]["val"]["type"] = "PairedImageDataset"
    assert run(tmp_path, content) == 0
    before = tiny_run.fingerprint(tmp_path)

    def faulty(img: Any, img2: Any) -> float:
        return {}["lost"]  # type: ignore[no-any-return]

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "faulty", faulty)
    content["val"]["metrics"]["mine"] = {"type": "faulty"}
    capfd.readouterr()
    assert run(tmp_path, content) == 2
    err = capfd.readouterr().err
    assert "metric 'mine' failed" in err
    assert "KeyError: 'lost'" in err
    assert "iter 1" not in err
    assert tiny_run.fingerprint(tmp_path) == before
    assert "KeyError: 'lost'" in (tmp_path / "experiments/tiny_failed_start.log").read_text()
    assert run(tmp_path, content, "--force_yml", "sanity=false") == 2
    assert "iter 2" in capfd.readouterr().err


def test_the_check_is_left_out_on_resume(images: Path, tmp_path: Path) -> None:
    content = configured("own", images)
    assert run(tmp_path, content) == 0
    content["train"]["total_iter"] = 5
    assert run(tmp_path, content, "--auto_resume") == 0
    assert (tmp_path / "experiments/tiny/train_tiny.log").read_text().count("sanity: one batch") == 1
    assert logging.getLogger("safmn").level == logging.INFO


def test_the_generator_of_a_gan_is_checked_although_it_waits(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the run itself, the discriminator alone is trained for ``net_d_init_iters`` iterations."""
    content = configured("GAN", images)
    content["train"]["net_d_init_iters"] = 1000
    content["train"]["gan_opt"] = {"type": "GANLoss", "gan_type": "nowhere", "loss_weight": 0.1}
    assert run(tmp_path, content) == 2
    capfd.readouterr()
    content["train"]["gan_opt"]["gan_type"] = "vanilla"
    content["train"]["pixel_opt"] = {"type": "Wrong"}
    from safmn.registry import LOSS_REGISTRY

    class Wrong(nn.Module):
        def forward(self, pred: Tensor, target: Tensor) -> Tensor:
            return pred - target

    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "Wrong", Wrong)
    assert run(tmp_path, content) == 2
    assert "l_g_pix" in capfd.readouterr().err
