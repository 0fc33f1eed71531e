"""Learning rates, freezing and gradual unfreezing by the names of weights; a resumed run is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import yaml

from safmn.train import main as train


def run(folder: Path, *arguments: str, **keys: Any) -> int:
    folder.mkdir(exist_ok=True)
    tiny_run.make_images(folder)
    data = tiny_run.options(folder, **keys)
    data["logger"]["save_checkpoint_freq"] = 2
    (folder / "run.yml").write_text(yaml.safe_dump(data))
    return train(["-opt", str(folder / "run.yml"), *arguments])


def weights(folder: Path, iteration: int) -> dict[str, torch.Tensor]:
    file = folder / f"experiments/tiny/models/net_g_{iteration}.pth"
    return dict(torch.load(file, weights_only=True)["params"])


def moved(folder: Path, first: int, last: int) -> set[str]:
    before, after = weights(folder, first), weights(folder, last)
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_freezing_unfreezing_and_resuming(tmp_path: Path) -> None:
    entries = [
        {"names": ["to_feat.*"], "lr_factor": 0},
        {"names": ["feats.*"], "frozen_until": 4, "lr_factor": 0.5},
    ]
    keys = {
        "weights_by_name": entries,
        "warmup_iter": -1,
        "optim_g": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1},
    }
    assert run(tmp_path / "a", total_iter=8, **keys) == 0
    assert moved(tmp_path / "a", 2, 4) == {"to_img"}
    assert moved(tmp_path / "a", 4, 8) == {"to_img", "feats"}
    for total in (2, 6, 8):  # interrupted twice
        assert run(tmp_path / "b", "--auto_resume", total_iter=total, **keys) == 0
    for name, tensor in weights(tmp_path / "a", 8).items():
        assert torch.equal(tensor, weights(tmp_path / "b", 8)[name]), name


def test_the_learning_rate_of_a_group(tmp_path: Path) -> None:
    """SGD's first step is proportional to the learning rate."""
    keys: dict[str, Any] = {"total_iter": 2, "warmup_iter": -1, "ema_decay": 0.0}
    keys["scheduler"] = {"type": "MultiStepLR", "milestones": [100]}
    keys["optim_g"] = {"type": "SGD", "lr": 1e-2}
    steps = {}
    for name, entries in (("plain", []), ("half", [{"names": ["to_img.*", "nothing.*"], "lr_factor": 0.5}])):
        assert run(tmp_path / name, **{**keys, "total_iter": 1, "weights_by_name": entries}) == 0
        steps[name] = weights(tmp_path / name, 1)
    start = tmp_path / "start"
    frozen = [{"names": ["*"], "lr_factor": 0}]
    assert run(start, **{**keys, "total_iter": 1, "weights_by_name": frozen}) == 0
    zero = weights(start, 1)
    for name in zero:
        full, half = steps["plain"][name] - zero[name], steps["half"][name] - zero[name]
        torch.testing.assert_close(half, full * (0.5 if name.startswith("to_img") else 1), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"names": ["fests.*"]}, "weights_by_name[0]: fests.* matches no weight"),
        ({"names": ["feats.*"], "lr_fctor": 1}, "weights_by_name[0].lr_fctor: unknown key. Did you mean 'lr_factor'?"),
        ({"lr_factor": 1}, "weights_by_name[0]: the key 'names' is missing"),
    ],
)
def test_mistakes_are_named(
    entry: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, total_iter=1, weights_by_name=[entry]) == 2
    assert message in capfd.readouterr().err
