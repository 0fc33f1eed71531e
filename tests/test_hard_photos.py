"""scripts/zoo/hard_photos.py chooses the photographs that a network restores better than bicubic."""

from __future__ import annotations

from pathlib import Path

import hard_photos
import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor, nn

from safmn.imaging import imresize, read_rgb, to_tensor, write_image


class Oracle(nn.Module):
    """A network that returns the HR image."""

    def __init__(self, hr: np.ndarray) -> None:
        super().__init__()
        self.scale, self.hr = 2, hr

    def forward(self, _: Tensor) -> Tensor:
        return to_tensor(self.hr)[None]


def test_the_score_of_a_perfect_network_is_the_whole_error_of_bicubic() -> None:
    hr = data.astronaut()[:96, 100:190]
    cut = hr[:96, :64]
    bicubic = imresize(imresize(cut, 1 / 2), 2)
    error = np.square((bicubic.astype(np.float64) - cut) / 255)[2:-2, 2:-2].mean()
    assert hard_photos.taken_off(Oracle(cut), hr) == pytest.approx(error, rel=1e-5)


def test_letters_are_chosen_before_sky_and_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs, chosen = tmp_path / "photographs", tmp_path / "chosen"
    page = np.repeat(data.page()[40:136, 100:196, None], 3, axis=2)
    noise = torch.randint(0, 256, (96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for name, image in {"page": page, "sky": np.full_like(page, 180), "noise": noise}.items():
        write_image(photographs / f"{name}.png", image)
    command = ["hard_photos.py", str(photographs), "-o", str(chosen), "--weights", "safmn-x4", "--share"]
    monkeypatch.setattr("sys.argv", [*command, "0.33"])
    assert hard_photos.main() == 0
    assert [path.name for path in chosen.iterdir()] == ["page.png"]
    assert np.array_equal(read_rgb(chosen / "page.png"), page)
    assert "1 of 3 images" in capsys.readouterr().out
    assert hard_photos.main() == 0  # a second run accepts the existing links
    (chosen / "sky.png").symlink_to(photographs / "sky.png")
    assert hard_photos.main() == 2
    assert "sky.png, which is not chosen" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*command, "0"])
    with pytest.raises(SystemExit, match="2"):
        hard_photos.main()
