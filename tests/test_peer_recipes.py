"""The option files of the published recipes: written from the table, and each can train."""

from __future__ import annotations

import importlib
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import yaml

from safmn.archs.peers import PEERS, in_form
from safmn.archs.peers.recipes import FOLDER, Recipe, recipes
from safmn.cli import main
from safmn.options import load_options
from safmn.registry import ARCH_REGISTRY, build
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.training.models import SRModel
from safmn.weights import load_network

RECIPES = list(recipes())
FIRST = list({recipe.cells["network"]: recipe for recipe in RECIPES}.values())


def test_the_files_are_those_of_the_table() -> None:
    advice = "run python -m safmn.archs.peers.recipes"
    assert {path.name for path in FOLDER.glob("*.yml")} == {recipe.path.name for recipe in RECIPES}, advice
    for recipe in RECIPES:
        assert recipe.path.read_text(encoding="utf-8") == recipe.text(), f"{recipe.path.name}: {advice}"


def test_every_file_loads_with_the_values_of_its_row(caplog: pytest.LogCaptureFixture) -> None:
    for recipe in RECIPES:
        options = load_options(recipe.path, mode="train")
        cells, section, run = recipe.cells, options.datasets["train"], options.train
        assert run is not None
        assert (options.scale, options.name) == (recipe.scale, recipe.run)
        assert options.network_g["type"] == cells["network"]
        assert section["gt_size"] % options.scale == 0
        assert section["batch_size_per_gpu"] == int(cells["batch"])
        assert run.total_iter == int(cells["iterations"])
        assert run.optim_g["lr"] == float(yaml.safe_load(cells["optimiser"])["lr"])
        assert (section.get("color") == "y") == (PEERS[cells["network"]].form.channels == "Y")
        assert options.val.metrics["psnr"]["crop_border"] == options.scale
        losses = {key for key in ("pixel_opt", "fft_opt") if getattr(run, key) is not None}
        assert losses == {part.split(":")[0].strip() for part in cells["losses"].split("; ")}
        assert (options.path.pretrain_network_g is not None) == (f"{recipe.scale}<" in cells["start"])
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.run)
def test_every_network_of_a_file_is_built_for_its_scale(recipe: Recipe) -> None:
    options = load_options(recipe.path, mode="train")
    network = in_form(build(ARCH_REGISTRY, options.network_g))
    assert network.scale == recipe.scale


def small(recipe: Recipe) -> dict[str, Any]:
    """Return the section of a small network for a recipe."""
    declared = PEERS[recipe.cells["network"]]
    scale = {declared.scale_argument: recipe.scale} if declared.scale_argument else {}
    return {"type": declared.name, **declared.small, **scale}


@pytest.mark.parametrize("recipe", FIRST, ids=lambda recipe: recipe.cells["network"])
def test_every_recipe_trains_a_step(recipe: Recipe, tmp_path: Path) -> None:
    """With the recipe's optimiser, schedule, losses, clipping, average and colours; the network and batch are small."""
    data = {"base": str(recipe.path), "num_gpu": 0, "network_g": small(recipe), "path": {"pretrain_network_g": None}}
    options = load_options(tiny_run.write_options(tmp_path, data), mode="train")
    torch.manual_seed(0)
    model = SRModel(options, Execution(torch.device("cpu")), Ranks())
    before = {name: value.clone() for name, value in model.networks["net_g"].bare.state_dict().items()}
    channels = 1 if options.datasets["train"].get("color") == "y" else 3
    gt = torch.rand(2, channels, 24 * recipe.scale, 24 * recipe.scale)
    model.set_learning_rate(recipe_step := 1 + options.train.warmup_iter * (options.train.warmup_iter > 0))
    losses = model.training_step([{"lq": gt[..., :: recipe.scale, :: recipe.scale], "gt": gt}], recipe_step).losses
    assert len(losses) == len([key for key in recipe.cells["losses"].split("; ") if key])
    assert all(float(loss) > 0 for loss in losses.values())
    after = model.networks["net_g"].bare.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def tiny(recipe: Recipe, images: Path, folder: Path) -> Path:
    """Write an option file with 8 iterations of a recipe on tiny images, and return it."""
    given = tiny_run.options(images)
    keys = ("dataroot_gt", "dataroot_lq", "batch_size_per_gpu", "num_worker_per_gpu", "dataset_enlarge_ratio")
    data = {
        "base": str(recipe.path),
        "name": "tiny",
        "num_gpu": 0,
        "datasets": {
            "train": {**{key: given["datasets"]["train"][key] for key in keys}, "filename_tmpl": "{}", "gt_size": 48},
            "val": {**{key: given["datasets"]["val"][key] for key in keys[:2]}, "filename_tmpl": "{}"},
        },
        "network_g": small(recipe),
        "path": {"pretrain_network_g": None, "experiments_root": str(folder / "experiments")},
        "train": {"total_iter": 8},
        "logger": {"use_tb_logger": False, "print_freq": 1, "save_checkpoint_freq": 3},
    }
    return tiny_run.write_options(folder, data)


def _die_in_step_5() -> None:
    """Kill this process with SIGKILL in its fifth step."""
    step = SRModel.training_step

    def training_step(self: SRModel, batches: Any, iteration: int) -> Any:
        if iteration == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batches, iteration)

    SRModel.training_step = training_step  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "name", ["RLFN_x2", *(pytest.param(each, marks=pytest.mark.slow) for each in ("VDSR_x2", "ShuffleMixer_x2"))]
)
def test_a_killed_run_resumes_to_the_same_bytes_and_exports(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    recipe = next(each for each in RECIPES if each.run == name)
    tiny_run.make_images(tmp_path, recipe.scale)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        tiny(recipe, tmp_path, folder)
    assert tiny_run.finish(whole / "options.yml") == 0
    process = tiny_run.start(broken / "options.yml", prepare=_die_in_step_5)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert tiny_run.finish(broken / "options.yml", "--auto_resume") == 0
    assert tiny_run.record(broken) == tiny_run.record(whole)
    files = "experiments/tiny/models/net_g_8.pth"
    assert (broken / files).read_bytes() == (whole / files).read_bytes()
    exported = tmp_path / "trained.onnx"
    assert main(["export", "--weights", str(broken / files), "--scale", "2", "-o", str(exported)]) == 0
    image = torch.rand(1, 3, 30, 26)
    with torch.no_grad():
        expected = load_network(broken / files, scale=2)(image)
    session = importlib.import_module("onnxruntime").InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), expected, rtol=1e-4, atol=1e-4)


def test_the_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["options", "peers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(RECIPES)]] == sorted(f"peers/{each.path.stem}" for each in RECIPES)
    assert main(["options", "peers/train_PAN_x4"]) == 0
    (tmp_path / "mine.yml").write_text(capsys.readouterr().out, encoding="utf-8")
    mine = load_options(tmp_path / "mine.yml", mode="train")
    assert mine.raw == load_options("peers/train_PAN_x4", mode="train").raw
