"""Tiles, windows and self-ensemble in validation and tests, against the same computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
import yaml
from torch import Tensor, nn

from safmn.archs import SAFMN
from safmn.errors import DataError
from safmn.evaluation.applying import Applying, in_whole_windows, window_of
from safmn.inference.upscaler import Upscaler
from safmn.test import main as run_test


def image(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(height * width))


class Windowed(nn.Module):
    """A network with windows, as HAT: it refuses sizes that do not fit, and each window sees only itself."""

    def __init__(self, window: int = 16, scale: int = 2) -> None:
        super().__init__()
        self.window_size, self.scale = window, scale

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        side = self.window_size
        windows = x.reshape(batch, channels, height // side, side, width // side, side)
        mean = windows.mean(dim=(3, 5), keepdim=True)
        mixed = (0.5 * windows + 0.5 * mean).reshape(x.shape)
        return nn.functional.interpolate(mixed, scale_factor=self.scale, mode="nearest")


@pytest.mark.parametrize(("height", "width", "tile"), [(70, 41, 16), (33, 90, 40), (64, 64, 24)])
@torch.no_grad()
def test_tiles_of_a_network_with_a_halo_equal_the_whole_image(height: int, width: int, tile: int) -> None:
    torch.manual_seed(0)
    network = SAFMN(dim=8, n_blocks=1, ffn_scale=2.0, upscaling_factor=2).eval()
    lq = image(height, width)
    padded = torch.nn.functional.pad(lq, (0, -width % 8, 0, -height % 8), mode="reflect")
    whole = network(padded)[..., : 2 * height, : 2 * width]
    torch.testing.assert_close(Applying(tile=tile)(network, lq), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_windows_are_padded_and_tiles_start_at_them() -> None:
    network, lq = Windowed(), image(50, 39)
    assert window_of(network) == 16
    padded = torch.nn.functional.pad(lq, (0, 9, 0, 14), mode="reflect")
    whole = network(padded)[..., :100, :78]
    assert torch.equal(in_whole_windows(network, lq), whole)
    assert torch.equal(Applying(tile=20, tile_overlap=5)(network, lq), whole)


@torch.no_grad()
def test_images_smaller_than_the_padding_are_mirrored_repeatedly() -> None:
    assert in_whole_windows(Windowed(), image(5, 3)).shape == (1, 3, 10, 6)
    assert in_whole_windows(Windowed(), image(1, 1)).shape == (1, 3, 2, 2)


@torch.no_grad()
def test_a_window_may_be_given() -> None:
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        return x

    assert Applying(window=8)(network, image(9, 16)).shape[-2:] == (9, 16)
    assert seen == [(16, 16)]


@torch.no_grad()
def test_the_self_ensemble_is_the_mean_of_eight_and_equals_the_upscalers() -> None:
    torch.manual_seed(1)
    network = SAFMN(dim=8, n_blocks=1, ffn_scale=2.0, upscaling_factor=2).eval()
    lq = image(24, 32)
    outputs = []
    for transpose in (False, True):
        for axes in ([], [2], [3], [2, 3]):
            turned = lq.flip(axes)
            turned = turned.transpose(2, 3) if transpose else turned
            output = network(turned)
            outputs.append((output.transpose(2, 3) if transpose else output).flip(axes))
    mean = torch.stack(outputs).double().mean(0).float()
    ours = Applying(self_ensemble=True)(network, lq)
    torch.testing.assert_close(ours, mean, rtol=1e-5, atol=1e-6)
    tiled = Applying(self_ensemble=True, tile=16)(network, lq)
    torch.testing.assert_close(tiled, mean, rtol=1e-5, atol=1e-5)
    upscaler = Upscaler(network, device="cpu", backend="eager", self_ensemble=True, guard=False)
    pixels = (lq[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    found = upscaler(pixels)
    again = Applying(self_ensemble=True)(network, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    levels = (again[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    assert (np.abs(levels.astype(int) - found.astype(int)) <= 1).all()


def test_a_network_without_a_whole_scale_is_named() -> None:
    with pytest.raises(DataError, match="no whole scale"):
        Applying(tile=8)(lambda x: x[..., :-1], image(20, 20))


def test_a_test_has_a_second_row_with_self_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option file and ``--ensemble`` ask for it; tiles of SAFMN do not change the numbers; two tests are equal."""
    tiny_run.make_images(tmp_path)
    data = tiny_run.options(tmp_path)
    torch.manual_seed(2)
    network = SAFMN(**{key: value for key, value in data["network_g"].items() if key != "type"})
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    data["datasets"] = {"test_1": data["datasets"]["val"]}
    data["path"] = {"pretrain_network_g": str(tmp_path / "net.pth")}
    del data["train"]
    (tmp_path / "test.yml").write_text(yaml.safe_dump(data))
    monkeypatch.chdir(tmp_path)
    found = {}
    calls = {
        "plain": [],
        "flag": ["--ensemble"],
        "key": ["--force_yml", "val:self_ensemble=true"],
        "tiles": ["--ensemble", "--force_yml", "val:tile=8"],
        "again": ["--ensemble"],
    }
    for name, arguments in calls.items():
        assert run_test(["-opt", "test.yml", *arguments]) == 0
        found[name] = json.loads((tmp_path / "results/tiny/metrics.json").read_text())["sets"]
    assert list(found["plain"]) == ["val"]
    assert list(found["flag"]) == ["val", "val (self-ensemble)"]
    table = capsys.readouterr().out
    assert "| val (self-ensemble)" in table
    scores = {
        name: {key: (value["mean"], value["per_image"]) for key, value in sets.items()} for name, sets in found.items()
    }
    assert scores["flag"] == scores["key"] == scores["again"]
    assert scores["plain"]["val"] == scores["flag"]["val"]
    assert scores["flag"]["val"] != scores["flag"]["val (self-ensemble)"]
    for key, (mean, _) in scores["tiles"].items():
        assert mean == pytest.approx(scores["flag"][key][0], abs=1e-3)
