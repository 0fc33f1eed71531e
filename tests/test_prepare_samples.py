"""safmn prepare samples: contact sheets of what training sees."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from data_helpers import make_folders, make_store

from safmn.cli.prepare import main
from safmn.data import SampleKey, TrainingLoader, build_dataset, sample_rng
from safmn.data.drawing import KINDS
from safmn.imaging import read_rgb, to_uint8


def cell(sheet: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    top, left = 4 + row * (side + 4), 4 + column * (side + 4)
    return sheet[top : top + side, left : left + side]


def test_drawings_have_one_row_a_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sheet.png"
    assert main(["samples", "--kinds", "manga", "flat", "--side", "40", "--grid", "3x9", "-o", str(path)]) == 0
    sheet = read_rgb(path)
    assert sheet.shape == (2 * 44 + 4, 3 * 44 + 4, 3)
    for row, kind in enumerate(("manga", "flat")):
        for column in range(3):
            expected = KINDS[kind][0](sample_rng(0, SampleKey(0, column)), 40)
            assert np.array_equal(cell(sheet, row, column, 40), expected)
    assert "6 patches of 40 pixels" in capsys.readouterr().out
    assert main(["samples", "--kinds", "all", "--side", "24", "--grid", "1x1", "-o", str(path)]) == 0
    assert read_rgb(path).shape == (len(KINDS) * 28 + 4, 32, 3)


def test_the_patches_are_those_of_training(tmp_path: Path) -> None:
    store = make_store(*make_folders(tmp_path), tmp_path / "images.store")
    train = {"name": "t", "type": "MixedDataset", "gt_size": 32, "use_hflip": True, "use_rot": True}
    train["parts"] = {"photos": {"type": "PatchStore", "dataroot": str(store)}, "drawn": {"type": "DrawnImages"}}
    train |= {"batch_size_per_gpu": 2, "num_worker_per_gpu": 0, "dataset_enlarge_ratio": 3}
    options = {"name": "run", "scale": 2, "manual_seed": 4, "num_gpu": 0, "datasets": {"train": train}}
    options |= {"network_g": {"type": "SAFMN", "dim": 8, "n_blocks": 1, "upscaling_factor": 2}}
    options |= {"train": {"total_iter": 4, "optim_g": {"type": "Adam", "lr": 1e-3}, "pixel_opt": {"type": "L1Loss"}}}
    options["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [9], "gamma": 0.5}
    options["model_type"] = "SRModel"
    (tmp_path / "run.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    path = tmp_path / "sheet.png"
    assert main(["samples", "-opt", str(tmp_path / "run.yml"), "--grid", "3x2", "-o", str(path)]) == 0
    dataset = build_dataset(train, phase="train", scale=2, seed=4)
    loader = TrainingLoader(dataset, batch_size=2, seed=4, enlarge_ratio=3)
    batches = loader.batches(0)
    patches = [patch for _ in range(3) for patch in next(batches)[0]["gt"]]
    loader.close()
    sheet = read_rgb(path)
    for number, patch in enumerate(patches):
        assert np.array_equal(cell(sheet, *divmod(number, 3), 32), to_uint8(patch))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either --opt FILE or --kinds"),
        (["--kinds", "leafs"], "'leafs'.*leaves"),
        (["--kinds", "leaves", "--grid", "3"], "columns x rows"),
        (["--kinds", "leaves", "--grid", "0x3"], "1 to 1000"),
        (["--kinds", "leaves", "--side", "0"], "--side 0"),
        (["--kinds", "leaves", "--seed", "-1"], "--seed -1"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["samples", "-o", str(tmp_path / "sheet.png"), *arguments]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "sheet.png").exists()
