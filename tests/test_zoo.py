"""The weights that come with the package match their index and load by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safmn import weights
from safmn.cli.zoo import main
from safmn.errors import WeightsError
from safmn.options import load_options
from safmn.registry import ARCH_REGISTRY, build
from safmn.weights import zoo

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def stocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a zoo with one small network."""
    import hashlib

    network = build(ARCH_REGISTRY, {"type": "SAFMN", "dim": 8, "n_blocks": 1, "upscaling_factor": 2})
    file = tmp_path / "tiny.safetensors"
    header = {"type": "SAFMN", "scale": "2", "iterations": "5", "licence": "CC0"}
    header["metrics"] = json.dumps({"Set5": {"psnr": 30.126, "ssim": 0.9}})
    weights.save_weights(file, params=network.state_dict(), metadata=header)
    index = {"safmn-tiny": {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    monkeypatch.setattr(zoo, "INDEX", tmp_path / "index.json")
    return tmp_path


def test_loads_by_name(stocked: Path) -> None:
    network = weights.load_network("safmn-tiny")
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)


def test_the_list_shows_measured_metrics(stocked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Set5 30.13 / 0.9000" in capsys.readouterr().out


def test_unknown_name_suggests_the_nearest(stocked: Path) -> None:
    with pytest.raises(WeightsError, match="'safmn-tiny'"):
        weights.load_network("safmn-tyni")


def test_altered_file_is_refused(stocked: Path) -> None:
    with (stocked / "tiny.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match=r"tiny\.safetensors.* not the file"):
        weights.load_network("safmn-tiny")


@pytest.mark.parametrize("name", sorted(zoo.entries()))
def test_shipped_weights_load_and_have_a_complete_card(name: str) -> None:
    card = zoo.entries()[name].card
    network = weights.load_network(name)
    assert type(network).__name__ == card["type"]
    assert network.scale == card["scale"]
    assert {"data", "iterations", "commit", "metrics", "licence", "option_file"} <= set(card)
    assert (REPOSITORY / card["option_file"]).exists()


@pytest.mark.parametrize("test", ["test_x2", "test_x3", "test_x4", "test_zoo_real_x2", "test_zoo_real_x4"])
def test_option_files_expect_the_metrics_of_their_weights(test: str) -> None:
    """The metrics that an option file expects are those on the card of the weights that it names."""
    options = load_options(REPOSITORY / "options" / f"{test}.yml", mode="test")
    measured = zoo.entries()[str(options.path.pretrain_network_g)].card["metrics"]
    assert options.expect
    assert set(options.expect) == set(measured)
    for name, wanted in options.expect.items():
        assert measured[name]
        for metric, value in measured[name].items():
            assert wanted.values[metric] == pytest.approx(value, abs=0.0005 if metric == "psnr" else 0.00005)


def test_a_folder_does_not_hide_weights_with_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "safmn-x2").mkdir()
    assert weights.load_network("safmn-x2").scale == 2
