"""``safmn test`` with an option file or a weight file: table, report, expected values, missing data, mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from safmn import cli
from safmn.archs import SAFMN
from safmn.evaluation import benchmark as testing
from safmn.evaluation.report import Scoreboard
from safmn.evaluation.scoring import SetResult
from safmn.imaging import imresize, write_image
from safmn.options import Expectation
from safmn.test import main
from safmn.weights import save_weights

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = {"dim": 8, "n_blocks": 1, "ffn_scale": 2.0, "upscaling_factor": 2}
Command = Callable[..., tuple[int, str, str]]


def make_set(root: Path, name: str, sizes: tuple[tuple[int, int], ...] = ((40, 48), (33, 50))) -> Path:
    """Write ``<name>/HR/<i>.png`` and ``<name>/LR_bicubic/X2/<i>x2.png`` under ``root``."""
    rng = np.random.default_rng(len(name))
    for index, (height, width) in enumerate(sizes):
        hr = cv2.resize(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8), (width, height))
        write_image(root / name / "HR" / f"{index}.png", hr)
        lr = imresize(hr[: height // 2 * 2, : width // 2 * 2], 0.5)
        write_image(root / name / "LR_bicubic" / "X2" / f"{index}x2.png", lr)
    return root / name


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two sets in datasets/benchmark, weights in small.pth and the option file test.yml."""
    monkeypatch.chdir(tmp_path)
    for name in ("Set5", "other"):
        make_set(tmp_path / "datasets" / "benchmark", name)
    torch.manual_seed(0)
    save_weights(tmp_path / "small.pth", params=SAFMN(**SMALL).state_dict())
    write_options(tmp_path)
    return tmp_path


def write_options(folder: Path, **changes: Any) -> None:
    """Write the option file test.yml; ``changes`` replace top-level keys."""
    sets = {
        f"test_{number}": {
            "name": name,
            "type": "PairedImageDataset",
            "dataroot_gt": f"datasets/benchmark/{name}/HR",
            "dataroot_lq": f"datasets/benchmark/{name}/LR_bicubic/X2",
            "filename_tmpl": "{}x2",
            "io_backend": {"type": "disk"},
        }
        for number, name in enumerate(("Set5", "other"), 1)
    }
    measure = {"crop_border": 2, "test_y_channel": True}
    options = {
        "name": "small",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": 0,
        "datasets": sets,
        "network_g": {"type": "SAFMN", **SMALL},
        "path": {"pretrain_network_g": "small.pth", "strict_load_g": True},
        "val": {
            "save_img": False,
            "metrics": {
                "psnr": {"type": "calculate_psnr", **measure},
                "ssim": {"type": "calculate_ssim", **measure, "better": "higher"},
            },
        },
        **changes,
    }
    (folder / "test.yml").write_text(yaml.safe_dump(options))


@pytest.fixture
def run_test(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command and returns exit status, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        return (status, *capsys.readouterr())

    return run


def report(name: str = "small") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path("results") / name / "metrics.json").read_text())
    return found


def test_an_option_file_gives_a_table_a_report_and_a_log(run_test: Command) -> None:
    status, out, err = run_test("-opt", "test.yml")
    assert status == 0
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip(" :-") for line in lines] == ["set", "", "Set5", "other"]
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["set", "images", "psnr", "ssim"]
    found = report()
    assert list(found["sets"]) == ["Set5", "other"]
    for name, each in found["sets"].items():
        assert set(each["per_image"]) == {"0x2", "1x2"}
        values = [image["psnr"] for image in each["per_image"].values()]
        assert each["mean"]["psnr"] == pytest.approx(np.mean(values))
        assert f"{each['mean']['psnr']:.3f}" in next(line for line in lines if line.startswith(f"| {name}"))
    assert found["network"] == {"type": "SAFMN", **SMALL}
    assert found["weights"]["path"] == "small.pth"
    assert len(found["weights"]["sha256"]) == len(found["option file"]["sha256"]) == 64
    assert found["versions"]["torch"] == torch.__version__
    assert found["options"]["datasets"]["test_1"]["name"] == "Set5"
    assert found["failed"] == {}
    assert found["drifted"] == []
    assert "\n".join(lines) in Path("results/small/metrics.md").read_text(encoding="utf-8")
    (log,) = Path("results/small").glob("test_small_*.log")
    assert "Set5: 2 images in" in log.read_text()
    assert "Set5: 2 images in" in err
    assert not Path("results/small/visualization").exists()


def test_safmn_test_runs_the_same_command(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["test", "-opt", "test.yml", "--auto_resume"]) == 0
    assert "| Set5 " in capsys.readouterr().out


def test_overrides_debug_and_saved_images(run_test: Command) -> None:
    status, _, _ = run_test("-opt", "test.yml", "--debug", "--force_yml", "val:save_img=true", "val:suffix=abc")
    assert status == 0
    assert report("debug_small")["name"] == "debug_small"
    saved = Path("results/debug_small/visualization")
    assert sorted(str(path.relative_to(saved)) for path in saved.rglob("*.png")) == [
        *("Set5/0x2_abc.png", "Set5/1x2_abc.png"),
        *("other/0x2_abc.png", "other/1x2_abc.png"),
    ]
    run_test("-opt", "test.yml", "--force_yml", "val:save_img=true", "path:results_root=elsewhere")
    assert Path("elsewhere/small/visualization/Set5/0x2_small.png").is_file()


def test_a_score_that_differs_from_its_expected_value_is_named_and_gives_status_1(
    run_test: Command, workplace: Path
) -> None:
    run_test("-opt", "test.yml")
    mean = report()["sets"]["Set5"]["mean"]
    expect = {"Set5": {"psnr": mean["psnr"] + 0.009, "ssim": mean["ssim"], "tolerance": {"psnr": 0.01, "ssim": 0.001}}}
    write_options(workplace, expect=expect)
    assert run_test("-opt", "test.yml")[0] == 0
    expect["Set5"]["psnr"] = mean["psnr"] + 0.011
    expect["other"] = {"ssim": 0.5, "tolerance": 0.001}
    write_options(workplace, expect=expect)
    status, _, err = run_test("-opt", "test.yml")
    assert status == 1
    drifts = [line.partition("drifted: ")[2] for line in err.splitlines() if "drifted: " in line]
    assert len(drifts) == 2
    assert drifts[0] == f"Set5: psnr is {mean['psnr']:.3f}, expected {mean['psnr'] + 0.011:.3f} within 0.01"
    assert drifts[1].startswith("other: ssim is ")
    assert report()["drifted"] == drifts
    assert "## Drifted" in Path("results/small/metrics.md").read_text(encoding="utf-8")


def test_a_missing_set_is_named_with_the_command_and_the_others_run(run_test: Command, workplace: Path) -> None:
    (workplace / "datasets/benchmark/Set5").rename(workplace / "moved")
    status, out, err = run_test("-opt", "test.yml")
    assert status == 2
    assert "| other " in out
    assert "| Set5 " not in out
    (line,) = [line for line in err.splitlines() if "Set5" in line]
    assert "Set5 is missing: there is no datasets/benchmark/Set5/HR" in line
    assert "safmn prepare" in line
    found = report()
    assert list(found["sets"]) == ["other"]
    assert list(found["failed"]) == ["Set5"]


def test_all_sets_missing(run_test: Command, workplace: Path) -> None:
    (workplace / "datasets").rename(workplace / "moved")
    status, out, err = run_test("-opt", "test.yml")
    assert status == 2
    assert out.strip() == ""
    assert err.count(" is missing: ") == 2
    assert "No set could be tested." in Path("results/small/metrics.md").read_text(encoding="utf-8")


def test_a_damaged_image_fails_only_its_set(run_test: Command, workplace: Path) -> None:
    image = workplace / "datasets/benchmark/Set5/LR_bicubic/X2/1x2.png"
    image.write_bytes(image.read_bytes()[:-20])
    status, out, err = run_test("-opt", "test.yml")
    assert status == 2
    assert "| other " in out
    assert err.count("Set5/LR_bicubic/X2/1x2.png") == 1
    assert "truncated" in err


def test_images_with_wrong_sizes_or_names_are_reported(run_test: Command, workplace: Path) -> None:
    folder = workplace / "datasets/benchmark"
    write_image(folder / "Set5/LR_bicubic/X2/0x2.png", np.zeros((10, 12, 3), np.uint8))
    (folder / "other/LR_bicubic/X2/1x2.png").rename(folder / "other/LR_bicubic/X2/2x2.png")
    status, _, err = run_test("-opt", "test.yml")
    assert status == 2
    (sizes,) = [line for line in err.splitlines() if "not tested: Set5" in line]
    assert "Set5/HR/0.png" in sizes
    assert "48x40" in sizes
    assert "12x10" in sizes
    (names,) = [line for line in err.splitlines() if "not tested: other" in line]
    assert "1x2.png" in names


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no option file": (["-opt", "nothing.yml"], "nothing.yml"),
    "unknown key": (["-opt", "test.yml", "--force_yml", "network_g:dimm=8"], "dimm"),
    "value that the network refuses": (
        ["-opt", "test.yml", "--force_yml", "network_g:dim=7"],
        "test.yml: network_g: dim",
    ),
    "unknown key in a metric": (["-opt", "test.yml", "--force_yml", "val:metrics:psnr:crop_boder=2"], "crop_boder"),
    "wrong type": (["-opt", "test.yml", "--force_yml", "val:save_img=maybe"], "save_img"),
    "no weights": (["-opt", "test.yml", "--force_yml", "path:pretrain_network_g=none.pth"], "none.pth"),
    "weights not given": (["-opt", "test.yml", "--force_yml", "path:pretrain_network_g=~"], "pretrain_network_g"),
    "weights of another size": (
        ["-opt", "test.yml", "--force_yml", "network_g:dim=12"],
        "dim 8, .* 12",
    ),
    "weights of another scale": (
        ["-opt", "test.yml", "--force_yml", "network_g:upscaling_factor=4", "scale=4"],
        "upscaling_factor 2, .* 4",
    ),
    "two sets of one name": (["-opt", "test.yml", "--force_yml", "datasets:test_2:name=Set5"], "Set5"),
    "no such device": (["-opt", "test.yml", "--device", "gpu"], "device 'gpu' cannot"),
    "not launched": (["-opt", "test.yml", "--launcher", "pytorch"], "torchrun"),
    "weights alone, another scale": (["--weights", "small.pth", "--scale", "4"], "scale 2, .*--scale is 4"),
    "weights alone, misspelt set": (["--weights", "small.pth", "--set", "Set5"], "NAME=HR_DIR,LR_DIR"),
    "weights alone, no file": (["--weights", "none.pth"], "none.pth"),
    "weights alone, no weights": (["--weights", "test.yml"], "test.yml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_exit_status_2(run_test: Command, mistake: str) -> None:
    arguments, named = MISTAKES[mistake]
    status, out, err = run_test(*arguments)
    assert status == 2
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("safmn: error: ")]
    assert len(errors) == 1
    assert re.search(named, errors[0])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "required"),
        (["-opt", "test.yml", "--scale", "2"], "--scale is only allowed with --weights"),
        (["-opt", "test.yml", "--save_img"], "--save_img is only allowed with --weights"),
        (["--weights", "small.pth", "--force_yml", "a=b"], "--force_yml is only allowed with -opt"),
    ],
)
def test_arguments_that_exclude_each_other_are_refused(
    run_test: Command, capsys: Any, arguments: list[str], named: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_test(*arguments)
    assert named in capsys.readouterr().err


def test_weights_alone_are_recognised_and_tested_on_the_benchmark_sets(run_test: Command) -> None:
    status, _, _ = run_test("--weights", "small.pth", "--scale", "2")
    assert status == 0
    alone = report()
    assert alone["network"] == {"type": "SAFMN", **SMALL}
    assert alone["option file"] is None
    assert list(alone["sets"]) == ["Set5", "other"]
    run_test("-opt", "test.yml")
    assert {name: each["mean"] for name, each in report()["sets"].items()} == {
        name: each["mean"] for name, each in alone["sets"].items()
    }


def test_weights_alone_with_a_users_sets(run_test: Command, workplace: Path) -> None:
    lr = workplace / "datasets/benchmark/other/LR_bicubic/X2"
    for image in list(lr.iterdir()):
        image.rename(lr / image.name.replace("x2", ""))  # LR images with the names of their HR images
    pairs = [
        f"{name}=datasets/benchmark/{name}/HR,datasets/benchmark/{name}/LR_bicubic/X2" for name in ("other", "Set5")
    ]
    status, _, _ = run_test("--weights", "small.pth", "--set", pairs[0], "--set", pairs[1], "--save_img")
    assert status == 0
    assert list(report()["sets"]) == ["other", "Set5"]
    assert Path("results/small/visualization/other/0_small.png").is_file()
    (workplace / "datasets/benchmark").rename(workplace / "sets")
    assert run_test("--weights", "small.pth", "--benchmark", "sets")[0] == 0
    status, _, err = run_test("--weights", "small.pth")
    assert status == 2
    assert err.count("is missing") == 4  # the papers' sets
    assert "left out: Manga109" in err  # the fifth, which is available on request only


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_num_gpu_1_without_a_gpu_uses_the_cpu_with_a_warning(run_test: Command) -> None:
    status, _, err = run_test("-opt", "test.yml", "--force_yml", "num_gpu=1")
    assert status == 0
    assert "using the CPU" in err
    for device in ("cuda", "meta", "cpu:x"):
        status, _, err = run_test("-opt", "test.yml", "--device", device)
        assert status == 2
        assert f"device {device!r} cannot be used" in err
    assert run_test("-opt", "test.yml", "--device", "auto")[0] == 0


def test_weights_of_different_runs_have_separate_results(run_test: Command) -> None:
    for run in ("one", "two"):
        folder = Path("experiments", run, "models")
        folder.mkdir(parents=True)
        shutil.copy("small.pth", folder / "net_g_latest.pth")
        assert run_test("--weights", str(folder / "net_g_latest.pth"))[0] == 0
    assert report("one_net_g_latest")["scale"] == report("two_net_g_latest")["scale"] == 2


def test_an_empty_folder_fails_only_its_set(run_test: Command) -> None:
    for image in Path("datasets/benchmark/Set5/LR_bicubic/X2").iterdir():
        image.unlink()
    status, _, err = run_test("--weights", "small.pth")
    assert status == 2
    assert "not tested: Set5: " in err
    assert "LR_bicubic/X2: no image" in err
    assert list(report()["sets"]) == ["other"]


def test_one_missing_image_is_named_and_an_earlier_report_is_kept(run_test: Command) -> None:
    assert run_test("--weights", "small.pth", "--benchmark", "datasets/benchmark")[0] == 0
    before = report()
    for name in ("Set5", "other"):
        sorted(Path(f"datasets/benchmark/{name}/LR_bicubic/X2").iterdir())[0].unlink()
    status, _, err = run_test("--weights", "small.pth")
    assert status == 2
    assert "'{}x2'" in err  # the template that fits the other image
    assert "LQ images of 1 of the 2" in err
    [aside] = Path("results").glob("small_archived_*")
    assert f"kept in {aside}" in err
    assert json.loads((aside / "metrics.json").read_text()) == before
    assert report()["sets"] == {}


def test_a_mistake_in_the_next_test_does_not_move_the_report(run_test: Command) -> None:
    assert run_test("--weights", "small.pth")[0] == 0
    before = report()
    assert run_test("--weights", "small.pth", "--scale", "3")[0] == 2
    assert report() == before
    assert not list(Path("results").glob("small_archived_*"))


@pytest.mark.parametrize(("error", "expected"), [(KeyboardInterrupt(), 130), (None, 143), (SystemError("a bug"), 2)])
def test_the_report_of_an_interrupted_test_has_the_sets_tested_before(
    run_test: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, expected: int
) -> None:
    original = testing._run_set

    def run_set(plan: Any, name: str, *arguments: Any) -> Any:
        if name == "other":
            if error is not None:
                raise error
            os.kill(os.getpid(), signal.SIGTERM)
        return original(plan, name, *arguments)

    monkeypatch.setattr(testing, "_run_set", run_set)
    assert run_test("--weights", "small.pth")[0] == expected
    assert list(report()["sets"]) == ["Set5"]
    assert report()["failed"] == {"other": "other: not finished"}


def test_unusable_and_repeated_names_of_sets_are_refused(run_test: Command) -> None:
    pair = "datasets/benchmark/Set5/HR,datasets/benchmark/Set5/LR_bicubic/X2"
    status, _, err = run_test("--weights", "small.pth", "--set", f"../x={pair}")
    assert status == 2
    assert "results folder" in err
    status, _, err = run_test("--weights", "small.pth", "--set", f"A={pair}", f"A={pair}")
    assert status == 2
    assert "another set has the name 'A'" in err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nMore"), "Set5: memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "Set5: memory ran out"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_an_error_in_one_set_keeps_the_scores_of_the_others(
    run_test: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    forward, images = SAFMN.forward, iter(range(100))

    def fail(network: SAFMN, x: torch.Tensor) -> torch.Tensor:
        if next(images) == 0:  # the first image of the first set
            raise error
        return forward(network, x)

    monkeypatch.setattr(SAFMN, "forward", fail)
    status, out, err = run_test("-opt", "test.yml")
    assert status == 2
    assert "not tested: " in err
    assert words in err
    assert list(report()["sets"]) == ["other"]
    assert "other" in out


def test_ctrl_c_ends_with_status_130(run_test: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safmn.evaluation.benchmark.evaluate", interrupt)
    status, _, err = run_test("-opt", "test.yml")
    assert status == 130
    assert "interrupted" in err


def scoreboard(network: str | None, crop: int, mean: dict[str, float], y: bool = True, **more: Any) -> Scoreboard:
    arguments = {"crop_border": crop, "test_y_channel": y}
    metrics = {"psnr": {"type": "calculate_psnr", **arguments}, "niqe": {"type": "calculate_niqe", "crop_border": crop}}
    results = {"Set5": SetResult("Set5", {"baby": mean}, mean, 1.0), "mine": SetResult("mine", {}, mean, 1.0)}
    rest = {"failures": {}, "expect": {}, "facts": {"name": "run"}, **more}
    return Scoreboard(metrics=metrics, network_name=network, scale=2, results=results, **rest)


def test_the_table_shows_published_values_beside_the_measured_ones() -> None:
    board = scoreboard("SAFMN", 2, {"psnr": 37.9, "niqe": 4.0})
    header, _, first, second = ([cell.strip() for cell in row.split("|")[1:-1]] for row in board.table().splitlines())
    assert header == ["set", "images", "psnr", "published", "difference", "niqe"]
    assert first == ["Set5", "1", "37.900", "38.00", "-0.100", "4.0000"]
    assert second == ["mine", "0", "37.900", "", "", "4.0000"]


@pytest.mark.parametrize(("network", "crop", "y"), [("SAFMN", 4, True), ("SAFMN", 2, False), (None, 2, True)])
def test_scores_measured_differently_are_not_compared_with_published_values(
    network: str | None, crop: int, y: bool
) -> None:
    assert "published" not in scoreboard(network, crop, {"psnr": 37.9}, y).table()


def test_nan_and_inf_count_as_drift_and_the_report_is_valid_json(tmp_path: Path) -> None:
    for value, text in ((float("nan"), "nan"), (float("inf"), "inf")):
        expect = {"Set5": Expectation(values={"psnr": 38.0}, tolerance={"psnr": 1e9})}
        board = scoreboard("SAFMN", 2, {"psnr": value}, expect=expect)
        assert len(board.drifts()) == 1
        board.write(tmp_path)
        assert json.loads((tmp_path / "metrics.json").read_text())["sets"]["Set5"]["mean"]["psnr"] == text


def run_script(*arguments: str, cwd: Path = REPOSITORY, launcher: tuple[str, ...] = ()) -> Any:
    """Run ``python safmn/test.py`` in a separate process without PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, *launcher, str(REPOSITORY / "safmn" / "test.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_write_one_report(workplace: Path, run_test: Command) -> None:
    run_test("-opt", "test.yml")
    alone = report()["sets"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    arguments = ("-opt", "test.yml", "--launcher", "pytorch", "--force_yml", "name=both")
    done = run_script(*arguments, cwd=workplace, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| Set5 ") == 1
    assert len(list((workplace / "results/both").glob("*.log"))) == 1
    for name, each in report("both")["sets"].items():
        assert each["per_image"] == alone[name]["per_image"]
        assert each["mean"] == alone[name]["mean"]


@pytest.mark.slow
def test_the_published_x2_weights_have_the_published_scores(
    benchmark_dir: Path, weights_dir: Path, tmp_path: Path
) -> None:
    roots = [
        f"datasets:{key}:dataroot_{kind}={benchmark_dir / name / folder}"
        for key, name in (("test_1", "Set5"), ("test_2", "Set14"))
        for kind, folder in (("gt", "HR"), ("lq", "LR_bicubic/X2"))
    ]
    weights = f"path:pretrain_network_g={weights_dir / 'safmn_x2_official_fp16.pth'}"
    done = run_script(
        "-opt", "tests/options/published_x2.yml", "--force_yml", weights, f"path:results_root={tmp_path}", *roots
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "published_x2" / "metrics.json").read_text())["sets"]
    assert found["Set5"]["mean"]["psnr"] == pytest.approx(38.000, abs=0.002)
    assert found["Set5"]["mean"]["ssim"] == pytest.approx(0.9604, abs=0.0002)
    assert found["Set14"]["mean"]["psnr"] == pytest.approx(33.538, abs=0.002)
    assert found["Set14"]["mean"]["ssim"] == pytest.approx(0.9177, abs=0.0002)
    assert len(found["Set5"]["per_image"]) == 5
    assert len(found["Set14"]["per_image"]) == 14
    assert "| Set5 | 5 | 38.000 | 38.00 |" in " ".join(done.stdout.split())


def test_a_missing_set_on_request_is_left_out_unless_it_is_required(run_test: Command) -> None:
    content = yaml.safe_load(Path("test.yml").read_text(encoding="utf-8"))
    first = next(iter(content["datasets"].values()))
    missing = {"name": "Manga109", "dataroot_gt": "x/Manga109/HR", "dataroot_lq": "x/Manga109/LR"}
    content["datasets"]["test_9"] = {**first, **missing}
    Path("more.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    status, out, err = run_test("-opt", "more.yml")
    assert status == 0
    assert "left out: Manga109" in err
    assert "manga109.org" in report()["left out"]["Manga109"]
    assert "Manga109" not in out
    assert run_test("-opt", "more.yml", "--require_all")[0] == 2
    expect = "expect={Manga109: {psnr: 30, tolerance: 1}}"
    assert run_test("-opt", "more.yml", "--force_yml", expect)[0] == 2
