"""Testing works without BasicSR and torchvision; training names the command that installs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from safmn.imaging import imresize

REPOSITORY = Path(__file__).resolve().parent.parent
PRELUDE = """
import importlib.abc, importlib.util, sys
ABSENT = ("basicsr", "torchvision", "tensorboard", "addict", "yapf")
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in ABSENT else find_spec(name, *rest)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv.pop(1))
from safmn.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRELUDE, str(REPOSITORY), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)


@pytest.fixture
def option_file(tmp_path: Path) -> str:
    """A test of safmn-x2 on one image."""
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    for kind, pixels in (("HR", image), ("LR", imresize(image, 0.5))):
        (tmp_path / kind).mkdir()
        assert cv2.imwrite(str(tmp_path / kind / "a.png"), pixels)
    places = {"dataroot_gt": str(tmp_path / "HR"), "dataroot_lq": str(tmp_path / "LR")}
    content = {
        "name": "x",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"test": {"name": "a", "type": "PairedImageDataset", "io_backend": {"type": "disk"}, **places}},
        "network_g": {"type": "SAFMN", "dim": 36, "n_blocks": 8, "ffn_scale": 2.0, "upscaling_factor": 2},
        "path": {"pretrain_network_g": "safmn-x2"},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}},
    }
    (tmp_path / "x.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(tmp_path / "x.yml")


@pytest.mark.slow
def test_testing_needs_no_basicsr(option_file: str, tmp_path: Path) -> None:
    done = run("test", "-opt", option_file, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| a " in done.stdout
    assert "psnr" in (tmp_path / "results/x/metrics.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_component_of_basicsr_and_training_name_the_command(option_file: str, tmp_path: Path) -> None:
    niqe = "val:metrics:niqe={type: calculate_niqe, crop_border: 4}"
    done = run("test", "-opt", option_file, "--force_yml", niqe, folder=tmp_path)
    assert done.returncode == 2
    assert "calculate_niqe" in done.stderr
    assert "safmn doctor --fix" in done.stderr
    done = run("train", "-opt", "demo_x4", folder=tmp_path)
    assert done.returncode == 2
    assert "safmn doctor --fix" in done.stderr
    assert "Traceback" not in done.stderr
