"""Copies of training photographs have the right scale and phase, and are the same in every run."""

from __future__ import annotations

from pathlib import Path

import augment_photos
import numpy as np
import pytest
from skimage import data

from safmn.imaging import imresize, read_rgb, write_image


def test_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    photographs, copies = tmp_path / "photographs", tmp_path / "copies"
    image = data.astronaut()[100:196, 50:130]
    write_image(photographs / "astronaut.png", image)
    command = ["augment_photos.py", str(photographs), "-o", str(copies), "--scales", "1", "0.5"]
    monkeypatch.setattr("sys.argv", command)
    assert augment_photos.main() == 0
    assert sorted(path.name for path in copies.iterdir()) == ["astronaut.png", "astronaut_100.png", "astronaut_50.png"]
    assert np.array_equal(read_rgb(copies / "astronaut.png"), image)
    down, across = augment_photos.phase("astronaut.png", 1.0)
    assert np.array_equal(read_rgb(copies / "astronaut_100.png"), image[down:, across:])
    down, across = augment_photos.phase("astronaut.png", 0.5)
    assert np.array_equal(read_rgb(copies / "astronaut_50.png"), imresize(image[down:, across:], 0.5))
    before = {path: path.read_bytes() for path in copies.iterdir()}
    (copies / "astronaut_50.png").unlink()
    assert augment_photos.main() == 0
    assert {path: path.read_bytes() for path in copies.iterdir()} == before
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.argv", [*command[:1], str(tmp_path / "empty"), *command[2:]])
    assert augment_photos.main() == 2
    assert "no image in this folder" in capsys.readouterr().err


def test_phases_differ_between_photographs() -> None:
    phases = {augment_photos.phase(f"photo{number}.png", 1.0) for number in range(60)}
    assert len(phases) > 10
    assert all(0 <= side < 4 for pair in phases for side in pair)
