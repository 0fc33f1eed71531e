"""Option files that change another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run

from safmn.errors import OptionError
from safmn.options import load_options
from safmn.options.differences import to_yaml


def write(folder: Path, name: str, data: dict[str, Any]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(data), encoding="utf-8")
    return path


def test_sections_are_merged_lists_and_other_types_replace(tmp_path: Path) -> None:
    base = tiny_run.options(tmp_path)
    base["train"]["losses"] = [{"type": "MSELoss"}]
    write(tmp_path, "base.yml", base)
    write(tmp_path / "mine", "middle.yml", {"base": "../base.yml", "train": {"total_iter": 7}, "name": "middle"})
    change = {
        "base": "middle.yml",
        "name": "mine",
        "network_g": {"dim": 16},
        "train": {
            "fft_opt": None,
            "losses": [{"type": "CharbonnierLoss"}],
            "scheduler": {"type": "MultiStepLR", "milestones": [3]},
            "optim_g": {"lr": 2e-3},
        },
    }
    options = load_options(write(tmp_path / "mine", "run.yml", change), mode="train")
    assert options.train is not None
    assert (options.name, options.train.total_iter) == ("mine", 7)
    assert options.network_g == {**base["network_g"], "dim": 16}
    assert options.train.fft_opt is None
    assert options.train.pixel_opt == base["train"]["pixel_opt"]
    assert options.train.losses == [{"type": "CharbonnierLoss"}]
    assert options.train.scheduler == {"type": "MultiStepLR", "milestones": [3]}  # without the periods of the other
    assert options.train.optim_g == {**base["train"]["optim_g"], "lr": 2e-3}
    assert "base" not in options.raw
    again = write(tmp_path, "again.yml", options.raw)
    assert load_options(again, mode="train").raw == options.raw


def test_a_null_removes_also_an_unknown_key(tmp_path: Path) -> None:
    write(tmp_path, "base.yml", {**tiny_run.options(tmp_path), "theirs": {"a": 1}})
    assert (
        "theirs" not in load_options(write(tmp_path, "run.yml", {"base": "base.yml", "theirs": None}), mode="train").raw
    )


def test_a_null_removes_a_metric(tmp_path: Path) -> None:
    base = tiny_run.options(tmp_path)
    ssim = {"type": "calculate_ssim", "crop_border": 2}
    base["val"]["metrics"]["ssim"] = ssim
    base_file = write(tmp_path, "base.yml", base)
    run = write(tmp_path, "run.yml", {"base": "base.yml", "val": {"metrics": {"psnr": None}}})
    for options in (
        load_options(run, mode="train"),
        load_options(base_file, mode="train", overrides=["val:metrics:psnr=~"]),
    ):
        assert options.val is not None
        assert options.val.metrics == {"ssim": ssim}


def test_a_shipped_file_may_be_the_base(tmp_path: Path) -> None:
    options = load_options(write(tmp_path, "run.yml", {"base": "train_x4", "network_g": {"dim": 40}}), mode="train")
    assert (options.network_g["dim"], options.scale) == (40, 4)


def test_mistakes_name_the_file_that_they_are_in(tmp_path: Path) -> None:
    write(tmp_path, "base.yml", {**tiny_run.options(tmp_path), "sclae": 2})
    run = write(tmp_path, "run.yml", {"base": "base.yml", "nmae": "x"})
    with pytest.raises(OptionError) as caught:
        load_options(run, mode="train")
    message = str(caught.value)
    assert "base base.yml, line" in message
    assert "sclae: unknown key. Did you mean 'scale'?" in message
    assert "line 2: nmae: unknown key" in message
    for content, expected in (
        ("run.yml", "refers to itself"),
        ("nowhere.yml", "no option file at"),
        (3, "expected the name"),
    ):
        with pytest.raises(OptionError, match=expected):
            load_options(write(tmp_path, "run.yml", {"base": content}), mode="train")
