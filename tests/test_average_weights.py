"""Averaged weights: computed in float64, from the EMA if there is one, and of equal networks only."""

from __future__ import annotations

from pathlib import Path

import average_weights
import pytest
import torch

from safmn.archs import SAFMN
from safmn.weights import load_state_dict, save_weights


def average(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["average_weights.py", *map(str, arguments)])
    return average_weights.main()


def test_mean_of_ema_weights_and_of_weights_without_ema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [SAFMN(dim=8, n_blocks=1).state_dict() for _ in range(3)]
    save_weights(tmp_path / "a.pth", params=states[2], params_ema=states[0])
    save_weights(tmp_path / "b.safetensors", params=states[1])
    assert (
        average(monkeypatch, tmp_path / "a.pth", tmp_path / "b.safetensors", "-o", tmp_path / "mean.safetensors") == 0
    )
    mean = load_state_dict(tmp_path / "mean.safetensors")
    assert mean.keys() == states[0].keys()
    for name, tensor in mean.items():
        assert torch.equal(tensor, ((states[0][name].double() + states[1][name].double()) / 2).float())


def test_different_networks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert average(monkeypatch, "safmn-x2", "safmn-x3", "-o", tmp_path / "mean.pth") == 2
    message = capfd.readouterr().err
    assert "safmn-x3" in message
    assert "another network than safmn-x2" in message
    assert "to_img.0" in message
    assert not (tmp_path / "mean.pth").exists()
