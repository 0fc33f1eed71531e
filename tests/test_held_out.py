"""The script that compares trained and held-out images: PSNR by its definition, the same images in every run."""

from __future__ import annotations

from pathlib import Path

import held_out
import numpy as np
import pytest
import torch
from skimage import data

from safmn.imaging import write_image


class Grey(torch.nn.Module):
    """A network whose output is always mid-grey."""

    scale = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 3, x.shape[2] * 2, x.shape[3] * 2), 0.5)


def test_psnr_of_a_grey_image() -> None:
    hr = data.chelsea()[:64, :96]
    error = (hr[2:-2, 2:-2] / 255 - 0.5) ** 2
    assert held_out.psnr(Grey(), hr) == pytest.approx(-10 * np.log10(error.mean()), abs=1e-4)


def test_the_table_ranks_the_weights_and_is_the_same_in_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png", data.chelsea()[:70, 40 * number : 40 * number + 70])
    command = ["held_out.py", str(tmp_path), "--weights", "safmn-x2", "safmn-x4", "--limit", "2"]
    monkeypatch.setattr("sys.argv", command)
    assert held_out.main() == 0
    first = capsys.readouterr().out
    assert "| images | safmn-x2 | safmn-x4 |" in first
    better, worse = (float(cell) for cell in first.splitlines()[-1].split("|")[2:4])
    assert better > worse + 3
    assert held_out.main() == 0
    assert capsys.readouterr().out == first


def test_images_are_cut_to_multiples_of_the_scale() -> None:
    assert held_out.cut(np.zeros((600, 250, 3), np.uint8), 4).shape == (512, 224, 3)
    assert held_out.cut(np.zeros((600, 250, 3), np.uint8), 3).shape == (480, 192, 3)
