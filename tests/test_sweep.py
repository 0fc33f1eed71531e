"""A sweep trains every combination, resumes, and compares the runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
import yaml
from PIL import Image

from safmn.cli.sweep import main
from safmn.training.sweep import _axis


@pytest.fixture
def option_file(tmp_path: Path) -> Path:
    tiny_run.make_images(tmp_path)
    data = tiny_run.options(tmp_path, total_iter=2, fft_opt=None)
    data["val"]["val_freq"] = 1
    (tmp_path / "run.yml").write_text(yaml.safe_dump(data))
    return tmp_path / "run.yml"


@pytest.mark.slow
def test_every_combination_is_trained_once(option_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-opt", str(option_file), "train.optim_g.lr=1e-3,5e-4", "network_g.dim=8", "--jobs", "2"]
    assert main(arguments) == 0
    folder = option_file.parent / "experiments"
    names = ["tiny_lr=0.001_dim=8", "tiny_lr=0.0005_dim=8"]
    records = {name: (folder / name / "record.jsonl").read_text() for name in names}
    assert len(set(records.values())) == 2
    table = (folder / "tiny_sweep/sweep.md").read_text()
    assert "train.optim_g.lr" in table
    assert len(table.strip().splitlines()) == 4
    with Image.open(folder / "tiny_sweep/sweep.png") as plot:
        assert len(set(plot.convert("RGB").getdata())) > 3
    assert table.strip() in capsys.readouterr().out
    assert main(arguments) == 0  # nothing is left to do
    assert {name: (folder / name / "record.jsonl").read_text() for name in names} == records
    assert not list(folder.glob("*archived*"))


def test_mistakes_are_found_before_training(option_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for values, message in (
        (["train.optim_g.lr"], "expected a key and values"),
        (["network_g.dim=8,wide"], "network_g.dim"),
        (["network_g.dmi=8"], "Did you mean 'dim'"),
        (["scale=2", "scale=4"], "given twice"),
    ):
        assert main(["-opt", str(option_file), *values]) == 2
        assert message in capsys.readouterr().err
    assert not (option_file.parent / "experiments").exists()


def test_values_may_hold_commas_in_brackets() -> None:
    assert _axis("train:optim_g:betas=[0.9,0.99],[0.9,0.999]") == ("train.optim_g.betas", ["[0.9,0.99]", "[0.9,0.999]"])
