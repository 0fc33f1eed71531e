"""The mean of two weights."""

from __future__ import annotations

from pathlib import Path

import average_weights
import pytest
import torch

from safmn import weights
from safmn.archs import SAFMN


def saved(path: Path, dim: int) -> dict[str, torch.Tensor]:
    state = SAFMN(dim=dim, n_blocks=1, upscaling_factor=2).state_dict()
    weights.save_weights(path, params=state, params_ema=state)
    return state


def test_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    before, after, other = (tmp_path / f"{name}.pth" for name in ("before", "after", "other"))
    first, second = saved(before, 8), saved(after, 8)
    command = ["average_weights.py", str(before), str(after), "-o", str(tmp_path / "mean.pth"), "--share", "0.25"]
    monkeypatch.setattr("sys.argv", command)
    assert average_weights.main() == 0
    mean = weights.load_state_dict(tmp_path / "mean.pth", param_key="params_ema")
    assert mean.keys() == first.keys()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * second[name])
    saved(other, 12)
    monkeypatch.setattr("sys.argv", [*command[:2], str(other), *command[3:]])
    assert average_weights.main() == 2
    assert "not of one network" in capsys.readouterr().err
