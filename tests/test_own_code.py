"""A bug in a user's own component is reported with file, line and causes, in every kind of component and command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from safmn import own_code
from safmn import test as testing
from safmn.errors import OptionError
from safmn.options import load_options
from safmn.train import main

PARTS = """
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from torch import nn

from safmn.data import PairedImageDataset
from safmn.training.models import SRModel

FAULT = "{fault}"


def work(place):
    if place == FAULT:
        try:
            {{}}["lost"]
        except KeyError as error:
            raise ZeroDivisionError(f"bug in {{place}}") from error  # THE LINE


work("import")


class Own{number}(nn.Module):
    def __init__(self, dim: int = 8):
        super().__init__()
        work("constructor")
        self.first, self.last = nn.Conv2d(3, dim, 3, padding=1), nn.Conv2d(dim, 12, 3, padding=1)

    def forward(self, x):
        work("forward" if self.training else "inference")
        return nn.functional.pixel_shuffle(self.last(self.first(x)), 2)


class OwnLoss{number}(nn.Module):
    def forward(self, pred, target):
        work("loss")
        return (pred - target).abs().mean()


def own_metric{number}(img, img2):
    work("metric")
    return 1.0


class OwnSet{number}(PairedImageDataset):
    def sample(self, index, rng):
        work("sample")
        return super().sample(index, rng)

    def __getitem__(self, index):
        work("item")
        return super().__getitem__(index)


class OwnModel{number}(SRModel):
    def __init__(self, options, execution, ranks):
        super().__init__(options, execution, ranks)
        work("model")


ARCH_REGISTRY.register(Own{number})
LOSS_REGISTRY.register(OwnLoss{number})
METRIC_REGISTRY.register(own_metric{number})
DATASET_REGISTRY.register(OwnSet{number})
MODEL_REGISTRY.register(OwnModel{number})
"""
LINE = 1 + PARTS.split("# THE LINE")[0].count("\n")
_number = iter(range(1000))


def write(images: Path, folder: Path, fault: str, *, workers: int = 0) -> Path:
    """Write a file of own components, of which one has a bug, and an option file that uses them; return the latter."""
    number = next(_number)
    parts = folder / f"parts_of_the_test_{number}.py"
    parts.write_text(PARTS.format(fault=fault, number=number))
    content = tiny_run.options(images, total_iter=6, fft_opt=None)
    content |= {"imports": [str(parts)], "model_type": f"OwnModel{number}", "network_g": {"type": f"Own{number}"}}
    content["path"] = {"experiments_root": str(folder / "experiments"), "results_root": str(folder / "results")}
    content["train"] |= {"pixel_opt": {"type": f"OwnLoss{number}"}}
    content["val"]["metrics"] = {"own": {"type": f"own_metric{number}"}}
    for section in content["datasets"].values():
        section["type"] = f"OwnSet{number}"
    content["datasets"]["train"]["num_worker_per_gpu"] = workers
    return tiny_run.write_options(folder, content)


def assert_located(text: str, folder: Path, place: str) -> None:
    """Assert that a message names exception, file, line, function, code and cause, in a short block."""
    [parts] = folder.glob("parts_of_the_test_*.py")
    message = text[text.index("safmn: error: ") :]
    assert f"ZeroDivisionError: bug in {place}" in message
    assert f"{parts}, line {LINE}, in work: raise ZeroDivisionError" in message
    assert f"caused by KeyError: 'lost'\n    {parts}, line {LINE - 2}, in work: " in message
    assert "Traceback" not in text
    assert len(message.splitlines()) <= 8


@pytest.mark.parametrize(
    ("place", "workers"),
    [
        ("import", 0), ("constructor", 0), ("forward", 0), ("loss", 0), ("metric", 0), ("sample", 0), ("sample", 1),
        ("item", 0), ("model", 0), ("inference", 0),
    ],
)  # fmt: skip
def test_a_bug_is_located_in_training(
    place: str, workers: int, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["-opt", str(write(images, tmp_path, place, workers=workers))]) == 2
    assert_located(capfd.readouterr().err, tmp_path, place)


def test_debug_shows_the_whole_traceback(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, (place, workers) in enumerate([("constructor", 0), ("sample", 1)]):
        (folder := tmp_path / str(number)).mkdir()
        assert main(["-opt", str(write(images, folder, place, workers=workers)), "--debug"]) == 2
        err = capfd.readouterr().err
        assert re.search(r"Traceback.*KeyError: 'lost'.*direct cause.*ZeroDivisionError", err, re.DOTALL)


@pytest.mark.parametrize("place", ["inference", "metric", "item"])
def test_a_bug_is_located_in_testing(
    place: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log file of the test has the whole traceback."""
    assert main(["-opt", str(write(images, tmp_path, "nowhere"))]) == 0
    option_file = tmp_path / "options.yml"
    [parts] = tmp_path.glob("parts_of_the_test_*.py")
    broken = tmp_path / "broken"
    broken.mkdir()
    content = option_file.read_text()
    text = parts.read_text().replace('"nowhere"', f'"{place}"')
    for name in ("Own", "OwnLoss", "own_metric", "OwnSet", "OwnModel"):  # other names than those already registered
        text = re.sub(rf"\b{name}(\d+)\b", rf"{name}{place}\1", text)
        content = re.sub(rf"\b{name}(\d+)\b", rf"{name}{place}\1", content)
    (broken / parts.name).write_text(text)
    (broken / "options.yml").write_text(content.replace(str(parts), str(broken / parts.name)))
    weights = tmp_path / "experiments/tiny/models/net_g_latest.pth"
    capfd.readouterr()
    assert testing.main(["-opt", str(broken / "options.yml"), "--force_yml", f"path:pretrain_network_g={weights}"]) == 2
    err = capfd.readouterr().err
    assert f"{broken / parts.name}, line {LINE}, in work: raise ZeroDivisionError" in err
    assert "caused by KeyError: 'lost'" in err
    [log] = (tmp_path / "results/tiny").glob("*.log")
    assert "Traceback (most recent call last)" in log.read_text()


def test_an_unknown_name_mentions_imports(images: Path, tmp_path: Path) -> None:
    content = tiny_run.options(images)
    content["network_g"] = {"type": "SAFMM"}
    path = tiny_run.write_options(tmp_path, content)
    with pytest.raises(OptionError, match=r"no network named 'SAFMM'.*Did you mean 'SAFMN.*`imports"):
        load_options(path, mode="train")
    content["network_g"] = {"type": "SAFMN", "upscaling_factor": 2}
    content["val"]["metrics"]["psnr"]["type"] = "calculate_snr"
    with pytest.raises(OptionError, match=r"no metric named 'calculate_snr'.*Did you mean 'calculate_.*`imports"):
        load_options(tiny_run.write_options(tmp_path, content), mode="train")


def test_a_syntax_error_is_located_in_its_file(images: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong_of_the_test.py").write_text("x = 1\ny = (\n")
    content: dict[str, Any] = tiny_run.options(images) | {"imports": [str(tmp_path / "wrong_of_the_test.py")]}
    with pytest.raises(OptionError, match=r"SyntaxError: .*\n.*wrong_of_the_test\.py, line 2: y = \("):
        load_options(tiny_run.write_options(tmp_path, content), mode="train")


def test_code_of_packages_is_not_the_users(tmp_path: Path) -> None:
    assert not own_code.is_own(str(Path(own_code.__file__)))
    assert not own_code.is_own(re.__file__)
    assert not own_code.is_own(pytest.__file__)
    assert not own_code.is_own("<string>")
    assert own_code.is_own(str(tmp_path / "mine.py"))
