"""``train.kernels: auto``, the default: native kernels where they apply and agree; a resumed run keeps its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch

from safmn.kernels.cpu import compilation
from safmn.options import load_options
from safmn.runtime.distributed import Ranks
from safmn.train import main
from safmn.training import kernel_choice
from safmn.training.build import prepare_execution
from safmn.training.checkpoint import Checkpointer, load

pytestmark = pytest.mark.skipif(compilation.compiler() is None, reason="no C++ compiler")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images of a tiny run."""
    folder = tmp_path_factory.mktemp("images")
    tiny_run.make_images(folder)
    return folder


def options(images: Path, folder: Path, *, batch: int = 8, total: int = 4, **train: Any) -> dict[str, Any]:
    content = tiny_run.options(images, total_iter=total, **train)
    content["path"]["experiments_root"] = str(folder / "experiments")
    content["datasets"]["train"]["batch_size_per_gpu"] = batch
    content["logger"]["save_checkpoint_freq"] = 2
    return content


def run(folder: Path, content: Mapping[str, Any], *arguments: str) -> tuple[int, str]:
    """Train; return the exit status and the run's log."""
    status = main(["-opt", str(tiny_run.write_options(folder, dict(content))), *arguments])
    logs = sorted((folder / "experiments" / "tiny").glob("train_tiny*.log"))
    return status, "".join(log.read_text() for log in logs)


def weights(folder: Path, iteration: int) -> dict[str, Any]:
    state = load(folder / "experiments/tiny/training_states" / f"{iteration:09d}").networks["net_g"]
    return dict(state["params"])


def fingerprint(folder: Path, iteration: int) -> str | None:
    state = folder / "experiments/tiny/training_states" / f"{iteration:09d}" / "state.json"
    found: str | None = json.loads(state.read_text())["progress"]["fingerprints"].get("train.kernels")
    return found


def made_older(folder: Path, iteration: int, kernels: str | None) -> None:
    """Make a checkpoint one from before ``auto``: no fingerprint, and ``train.kernels`` as given or missing."""
    checkpointer = Checkpointer(folder / "experiments/tiny/training_states")
    found = load(checkpointer.path(iteration))
    del found.progress["fingerprints"]["train.kernels"]
    found.options["train"].pop("kernels", None)
    found.options["train"] |= {} if kernels is None else {"kernels": kernels}
    checkpointer.save(iteration, found.networks, found.progress, found.options)


def equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_default_is_native_where_it_applies(images: Path, tmp_path: Path) -> None:
    status, log = run(tmp_path, options(images, tmp_path))
    assert status == 0
    assert "native kernels (which agree with torch to " in log
    assert fingerprint(tmp_path, 4) == "native"


@pytest.mark.parametrize("before", [None, "torch", "native"])
def test_a_run_from_before_continues_as_it_began(before: str | None, images: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    explicit = {"kernels": before or "torch"}
    assert run(whole, options(images, whole, **explicit))[0] == 0
    assert run(halves, options(images, halves, total=2, **explicit))[0] == 0
    made_older(halves, 2, before)
    status, log = run(halves, options(images, halves), "--auto_resume")
    assert status == 0
    assert ("native kernels: this run began without them" in log) == (before != "native")
    assert equal(weights(halves, 4), weights(whole, 4))
    assert fingerprint(halves, 4) == (before or "torch")


def test_other_kernels_than_the_runs_need_allow_changes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, options(images, tmp_path, total=2, kernels="torch"))[0] == 0
    made_older(tmp_path, 2, None)
    changed = options(images, tmp_path, kernels="native")
    assert run(tmp_path, changed, "--auto_resume")[0] == 2
    assert "train.kernels: torch -> native" in capsys.readouterr().err
    assert run(tmp_path, changed, "--auto_resume", "--allow-changes")[0] == 0


def test_auto_resumes_from_auto(images: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    assert run(whole, options(images, whole))[0] == 0
    assert run(halves, options(images, halves, total=2))[0] == 0
    assert run(halves, options(images, halves), "--auto_resume")[0] == 0
    assert equal(weights(halves, 4), weights(whole, 4))
    assert fingerprint(halves, 4) == "native"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch": 5}, "they compute 8 samples at once, and the batch has 5"),
        ({"precision": "bf16"}, "they compute in fp32 and without compile"),
        ({"gt_size": 24}, "a gt_size that is a multiple of 8 * scale"),
        ({"compiler": None}, "they need a C++ compiler"),
        ({"error": 0.1}, "they are 1.0e-01 off on this machine"),
        ({"error": float("nan")}, "they are nan off on this machine"),
        ({"network": "SAFMNPP"}, None),
    ],
)
def test_torch_where_native_does_not_apply(
    changes: dict[str, Any], reason: str | None, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = options(images, tmp_path, batch=changes.get("batch", 8))
    content["datasets"]["train"]["gt_size"] = changes.get("gt_size", 32)
    content["train"]["precision"] = changes.get("precision")
    if "network" in changes:
        content["network_g"] |= {"type": changes["network"], "dim": 12}
    if "compiler" in changes:
        monkeypatch.setattr(kernel_choice, "can_load", lambda: False)
    if "error" in changes:
        monkeypatch.setattr(kernel_choice, "kernel_error", lambda network: changes["error"])
    execution = prepare_execution(load_options(tiny_run.write_options(tmp_path, content), mode="train"), Ranks())
    assert execution.kernels == "torch"
    if reason is None:
        assert execution.about_kernels == ""
    else:
        assert reason in execution.describe()
