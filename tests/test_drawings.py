"""Training pairs with drawings are the same in every run, and sharper than shrunk images."""

from __future__ import annotations

from pathlib import Path

import drawings
import numpy as np
import pytest
from skimage import data
from torch import Tensor, nn

from safmn.imaging import imresize, read_rgb, write_image


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    image = data.astronaut()
    write_image(folder / "fits.png", image[:96, :120])
    write_image(folder / "does_not.png", image[:97, :122])
    return folder


def test_pairs(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "pairs"
    command = ["drawings.py", str(photographs), "-o", str(output), "--weights", "safmn-x3", "--drawings", "5"]
    monkeypatch.setattr("sys.argv", command)
    assert drawings.main() == 0
    names = sorted(path.name for path in (output / "HR").iterdir())
    assert names == ["does_not.png", *(f"drawing000{number}.png" for number in range(5)), "fits.png"]
    assert names == sorted(path.name for path in (output / "LR").iterdir())
    for name in names:
        hr, lr = read_rgb(output / "HR" / name), read_rgb(output / "LR" / name)
        assert hr.shape == (3 * lr.shape[0], 3 * lr.shape[1], 3)
        if name.startswith("drawing"):
            assert np.array_equal(lr, drawings.drawing(int(name[7:11])))
            again, enlarged = (imresize(image, 1 / 3) for image in (hr, imresize(lr, 3)))
            assert difference(again, lr) < difference(enlarged, lr)
        else:
            assert np.array_equal(hr, read_rgb(photographs / name)[: len(hr), : hr.shape[1]])
            assert np.array_equal(lr, imresize(hr, 1 / 3))
    before = {path: path.read_bytes() for path in output.rglob("*.png")}
    (output / "LR" / "drawing0003.png").unlink()
    (output / "LR" / "does_not.png").unlink()
    assert drawings.main() == 0
    assert {path: path.read_bytes() for path in output.rglob("*.png")} == before


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.square(one.astype(float) - other).mean())


def test_enlarged_shrinks_to_the_drawing_where_it_can() -> None:
    """With a network that outputs plain grey, the corrections alone make the image shrink to the drawing."""

    class Grey(nn.Module):
        scale = 2

        def forward(self, x: Tensor) -> Tensor:
            return x.new_full((1, 3, 2 * x.shape[2], 2 * x.shape[3]), 0.5)

    lr = imresize(data.astronaut()[:128, :128], 0.5)
    hr = drawings.enlarged(lr, Grey())
    assert (hr.shape, hr.dtype) == ((128, 128, 3), np.uint8)
    assert np.abs(imresize(hr, 0.5).astype(int) - lr).max() <= 2


def test_a_folder_without_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    command = ["drawings.py", str(tmp_path / "empty"), "-o", str(tmp_path / "pairs"), "--weights", "safmn-x2"]
    monkeypatch.setattr("sys.argv", command)
    assert drawings.main() == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fits.bmp", "drawing0003.png"])
def test_two_images_with_one_name_are_refused(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_image(photographs / name, data.astronaut()[:96, :96])
    command = ["drawings.py", str(photographs), "-o", str(tmp_path / "pairs"), "--weights", "safmn-x2"]
    monkeypatch.setattr("sys.argv", command)
    assert drawings.main() == 2
    assert f"{Path(name).stem}.png would be written twice" in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()


def test_drawings_are_sharper_than_what_shrinking_makes() -> None:
    def steps(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(float), axis=1)).max())

    shrunk = [imresize(np.kron(drawings.drawing(number), np.ones((2, 2, 1), np.uint8)), 0.5) for number in range(40)]
    drawn = [drawings.drawing(number) for number in range(40)]
    assert np.mean([steps(image) for image in drawn]) > np.mean([steps(image) for image in shrunk]) + 10
    assert len({image.tobytes() for image in drawn}) > 35


@pytest.mark.parametrize("kind", drawings.KINDS)
def test_every_kind_draws_whole_images(kind: object) -> None:
    for seed in range(30):
        image = kind(np.random.default_rng(seed))  # type: ignore[operator]
        assert image.shape == (drawings.SIDE, drawings.SIDE, 3)
        assert image.dtype == np.uint8
