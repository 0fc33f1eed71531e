"""Knowledge distillation (``train.teacher``): the targets, excepted images, mistakes and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from safmn.kernels.cpu.compilation import compiler
from safmn.kernels.cpu.training import NativeSAFMN
from safmn.options.types import TeacherSection
from safmn.runtime.execution import Execution
from safmn.train import main
from safmn.training.models.sr_model import SRModel
from safmn.training.models.teacher import Teacher, is_excepted
from safmn.weights import load_state_dict, save_weights

SECTION = tiny_run.options(Path())["network_g"]
CPU = Execution(torch.device("cpu"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A file of weights and the network with these weights."""
    torch.manual_seed(3)
    network = build_network(SECTION).eval().requires_grad_(False)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    save_weights(params=network.state_dict(), path=path)
    return path, network


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "lq": torch.rand(3, 3, 16, 16, generator=generator),
        "gt": torch.rand(3, 3, 32, 32, generator=generator),
        "gt_path": ["a/photo1.png", "drawings/drawing2.png", "b/drawing.d/photo3.png"],
    }


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=2e-6)


def targets(path: Path, execution: Execution = CPU, **keys: Any) -> Tensor:
    found: Tensor = Teacher(TeacherSection(weights=str(path), **keys), 2, execution).targets(batch())["gt"]
    return found


def test_the_target_is_the_teachers_output(teacher: tuple[Path, nn.Module]) -> None:
    path, network = teacher
    close(targets(path), network(batch()["lq"]))


def test_excepted_images_keep_their_gt(teacher: tuple[Path, nn.Module]) -> None:
    path, network = teacher
    found, given = targets(path, except_images="drawing*"), batch()
    assert torch.equal(found[1], given["gt"][1])
    close(found[::2], network(given["lq"])[::2])  # a folder whose name matches is not an exception
    assert torch.equal(targets(path, except_images="*"), given["gt"])


def test_patterns_match_file_names_and_lmdb_keys() -> None:
    assert is_excepted("HR/drawing_1.png", "drawing*.png")
    assert is_excepted("HR/drawing_1.png", "drawing_1")
    assert is_excepted("drawing_1", "drawing_?")
    assert is_excepted("drawing_1", "drawing_?.png")
    assert not is_excepted("HR/drawing_1.png", "drawing*.jpg")
    assert not is_excepted("drawings/photo.png", "drawing*")


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_native_kernels_give_the_same_targets(teacher: tuple[Path, nn.Module]) -> None:
    path, network = teacher
    native = Execution(torch.device("cpu"), kernels="native")
    assert isinstance(Teacher(TeacherSection(weights=str(path)), 2, native)._forward, NativeSAFMN)
    close(targets(path, native), network(batch()["lq"]))


def run(images: Path, folder: Path, *, weights: Path, **keys: Any) -> tuple[int, Path]:
    content = tiny_run.options(images, teacher={"weights": str(weights), **keys})
    content["path"] |= {"experiments_root": str(folder / "experiments"), "pretrain_network_g": str(weights)}
    folder.mkdir(exist_ok=True)
    file = tiny_run.write_options(folder, content)
    return main(["-opt", str(file), "--auto_resume"]), folder / "experiments/tiny"


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "record.jsonl").read_text().splitlines())
    return [line["l_pix"] for line in lines if "l_pix" in line]


def test_a_network_with_its_teachers_weights_does_not_change(
    images: Path, tmp_path: Path, teacher: tuple[Path, nn.Module]
) -> None:
    path, _ = teacher
    status, folder = run(images, tmp_path, weights=path)
    assert status == 0
    assert max(losses(folder)) < 1e-6
    kept = load_state_dict(folder / "models/net_g_24.pth")
    for name, value in load_state_dict(path).items():
        close(kept[name], value)


def test_excepted_images_are_learned(images: Path, tmp_path: Path, teacher: tuple[Path, nn.Module]) -> None:
    status, folder = run(images, tmp_path, weights=teacher[0], except_images="photo3.png")
    assert status == 0
    assert max(losses(folder)) > 1e-2


def test_a_pattern_that_matches_no_image_is_refused(
    images: Path, tmp_path: Path, teacher: tuple[Path, nn.Module], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path, weights=teacher[0], except_images="drawnig*")[0] == 2
    message = capfd.readouterr().err
    for words in ("train.teacher.except_images", "'drawnig*'", "no training image", "'photo0'"):
        assert words in message


def test_moved_weights_are_the_same_teacher_and_replaced_ones_are_not(
    images: Path, tmp_path: Path, teacher: tuple[Path, nn.Module], capfd: pytest.CaptureFixture[str]
) -> None:
    path, moved = tmp_path / "teacher.pth", tmp_path / "moved.pth"
    path.write_bytes(teacher[0].read_bytes())
    content = tiny_run.options(images, teacher={"weights": str(path)}, total_iter=3)
    content["path"] |= {"experiments_root": str(tmp_path / "experiments")}
    arguments = ["-opt", str(tiny_run.write_options(tmp_path, content)), "--auto_resume", "--force_yml"]
    assert main([*arguments, "train:total_iter=3"]) == 0
    path.rename(moved)
    assert main([*arguments, f"train:teacher:weights={moved}", "train:total_iter=4"]) == 0
    save_weights(moved, params={name: value + 1 for name, value in teacher[1].state_dict().items()})
    assert main([*arguments, f"train:teacher:weights={moved}", "train:total_iter=5"]) == 2
    assert "train.teacher.weights: " in capfd.readouterr().err


def test_an_interrupted_run_with_a_teacher_resumes_exactly(
    images: Path, tmp_path: Path, teacher: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = teacher
    assert run(images, tmp_path / "whole", weights=path, except_images="photo3.png")[0] == 0
    original = SRModel.training_step

    def stops(self: SRModel, batches: Any, iteration: int) -> Any:
        if iteration == 11:
            raise KeyboardInterrupt
        return original(self, batches, iteration)

    monkeypatch.setattr(SRModel, "training_step", stops)
    assert run(images, tmp_path / "cut", weights=path, except_images="photo3.png")[0] == 130
    monkeypatch.undo()
    assert run(images, tmp_path / "cut", weights=path, except_images="photo3.png")[0] == 0
    whole, cut = (
        load_state_dict(tmp_path / name / "experiments/tiny/models/net_g_24.pth") for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_teacher_of_another_scale_is_refused(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x3.pth"
    save_weights(path, params=build_network({**SECTION, "upscaling_factor": 3}).state_dict())
    content = tiny_run.options(images, teacher={"weights": str(path)})
    file = tiny_run.write_options(tmp_path, content)
    assert main(["-opt", str(file)]) == 2
    message = capfd.readouterr().err
    for words in (f"train.teacher.weights: {path}", "scale 3", "scale is 2"):
        assert words in message


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weights": "nowhere.pth"}, "nowhere.pth"),
        ({}, "'weights'"),
        ({"weights": "safmn-x2", "except": "drawing*"}, "train.teacher.except: unknown key"),
    ],
)
def test_mistakes_are_named(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], section: dict[str, str], message: str
) -> None:
    file = tiny_run.write_options(tmp_path, tiny_run.options(images, teacher=section))
    assert main(["-opt", str(file)]) == 2
    error = capfd.readouterr().err
    assert "train.teacher" in error
    assert message in error


def test_models_with_a_discriminator_refuse_a_teacher(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = tiny_run.real_options(images, tmp_path, "RealGANModel", 0)
    content["train"] |= {"teacher": {"weights": "safmn-x2"}, "flat_areas": {}}
    assert main(["-opt", str(tiny_run.write_options(tmp_path, content))]) == 2
    error = capfd.readouterr().err
    for key in ("teacher", "flat_areas"):
        assert f"train.{key}: is not supported" in error
    assert "RealGANModel" in error


def test_the_teachers_output_also_replaces_the_sharpened_gt(
    images: Path, tmp_path: Path, teacher: tuple[Path, nn.Module]
) -> None:
    content = tiny_run.real_options(images, tmp_path, "RealSRModel", 0)
    content["train"] |= {"teacher": {"weights": str(teacher[0])}, "total_iter": 3}
    content["path"]["pretrain_network_g"] = str(teacher[0])
    assert main(["-opt", str(tiny_run.write_options(tmp_path, content))]) == 0
    assert max(losses(tmp_path / "experiments/tiny")) < 1e-6
