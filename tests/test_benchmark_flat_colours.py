"""The flat-colour benchmark counts the ruined colours of given weights, and no others."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts" / "benchmarks"))
import flat_colours

from safmn import weights
from safmn.inference.upscaler import Upscaler


class Nearest(torch.nn.Module):
    """Repeats pixels. Blue without another colour within 8 pixels becomes 50 levels darker."""

    scale, window, halo = 2, 1, 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blue = ((x[:, 2:] > 0.9) & (x[:, :2].amax(1, keepdim=True) < 0.1)).float()
        surrounded = -torch.nn.functional.max_pool2d(-blue, 17, 1, 8)
        return (x - surrounded * x * 50 / 255).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_all_combinations_of_levels_are_tested() -> None:
    colours = flat_colours.all_colours()
    assert colours.shape == (729, 3)
    assert len(np.unique(colours, axis=0)) == 729
    assert flat_colours.of_hex("3370ff") == (51, 112, 255)


def test_a_colour_that_is_ruined_only_in_large_areas_is_found() -> None:
    colours = np.array([[0, 0, 255], [255, 0, 0]], np.uint8)
    found = dict(flat_colours.areas(Upscaler(Nearest(), backend="eager", device="cpu", guard=False), colours))
    assert found["24 on white"].tolist() == [[50, pytest.approx(50, abs=20)], [0, 0]]
    assert found["48 on another"].tolist() == [[50, 50], [0, 0]]
    assert found["whole image"].tolist() == [[50, 50], [0, 0]]


@pytest.mark.slow
def test_both_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    network = weights.load_network("safmn-x2")
    file = tmp_path / "dark.safetensors"
    state = network.state_dict()
    state["to_img.0.bias"] = state["to_img.0.bias"] - 10 / 255
    weights.save_weights(file, params=state)
    monkeypatch.setattr(flat_colours, "INTERFACE", flat_colours.INTERFACE[:1])
    monkeypatch.setattr("sys.argv", ["flat_colours.py", "safmn-x2", str(file), "--values", "2", "--backend", "eager"])
    assert flat_colours.main() == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    counts = {(row[0][2:], row[1]): int(row[2]) for row in rows if len(row) == 7 and row[2].isdigit()}
    assert {name for name, _ in counts} == {"safmn-x2", "dark"}
    assert {area for _, area in counts} == {area for name, area in counts if name == "dark"}
    assert all(count == (7 if name == "dark" else 0) for (name, _), count in counts.items())  # black stays black
    drawings = [row for row in rows if len(row) == 8 and row[0] == "| safmn-x2" and row[1] != "slope"]
    assert len(drawings) == 21
    assert all(float(row[5]) > 0 for row in drawings)  # better than bicubic
