"""``safmn doctor -opt``: a sound run, and runs with one fault each, which is named before the first iteration."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from skimage import data

from safmn.cli import main
from safmn.doctor.findings import Finding, State
from safmn.doctor.option_file import examine_file
from safmn.doctor.pairs import Compared, other_kernel
from safmn.imaging import imresize, write_image

Edit = Callable[[dict[str, Any], Path], None]

OWN_LOSS = """
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn


@LOSS_REGISTRY.register()
class FaultyLoss(nn.Module):
    def forward(self, pred, target):
        return (pred - target.missing).mean()
"""
OWN_METRIC = """
from basicsr.utils.registry import METRIC_REGISTRY


@METRIC_REGISTRY.register()
def calculate_faulty(img, img2):
    raise ZeroDivisionError("no such luck")
"""


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("safmn.doctor.sets.cache_folder", lambda: folder)
    log = logging.getLogger("safmn")
    handlers, propagate, level = list(log.handlers), log.propagate, log.level
    yield
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


def _picture(seed: int, height: int = 96, width: int = 120) -> np.ndarray:
    """Return smooth random shapes, as photographs have: uint8 (height, width, 3)."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.asarray(128 + 50 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with six training pairs, two validation pairs and the option file run.yml."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        part = "train" if number < 6 else "val"
        gt = _picture(number)
        write_image(tmp_path / part / "HR" / f"p{number}.png", gt)
        write_image(tmp_path / part / "LR" / f"p{number}x2.png", imresize(gt, 0.5))

    def pairs(part: str) -> dict[str, Any]:
        return {
            "name": f"{part} images",
            "type": "PairedImageDataset",
            "dataroot_gt": f"{part}/HR",
            "dataroot_lq": f"{part}/LR",
            "filename_tmpl": "{}x2",
        }

    options = {
        "name": "mine",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"train": {**pairs("train"), "gt_size": 32, "batch_size_per_gpu": 2}, "val": pairs("val")},
        "network_g": {"type": "SAFMN", "dim": 8, "n_blocks": 1, "upscaling_factor": 2},
        "train": {
            "total_iter": 100,
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [100]},
            "pixel_opt": {"type": "L1Loss"},
        },
        "val": {"val_freq": 50, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
        "logger": {"print_freq": 10, "save_checkpoint_freq": 50},
    }
    (tmp_path / "run.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    (tmp_path / "own_loss.py").write_text(OWN_LOSS)
    (tmp_path / "own_metric.py").write_text(OWN_METRIC)
    return tmp_path


def edited(run: Path, edit: Edit) -> list[Finding]:
    options = yaml.safe_load((run / "run.yml").read_text())
    edit(options, run)
    (run / "run.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    return examine_file("run.yml")


def texts(findings: list[Finding], state: State) -> str:
    return "\n".join(f"{finding.subject}: {finding.text}" for finding in findings if finding.state is state)


def test_a_sound_run_is_tried_and_leaves_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.rglob("*"))
    assert main(["doctor", "-opt", "run.yml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["fails"]
    said = {entry["subject"]: entry["text"] for entry in found["fine"]}
    assert said["train (train images)"] == "6 pairs: 6 GT png, 8 bits; 6 LQ png, 8 bits"
    assert said["trial run"] == "4 steps, validation, saving and resuming work"
    assert re.match(r"about \d+ s: 100 iterations of .*, 2 validations of ", said["time"])
    assert {"memory", "disk", "loading"} <= {entry["subject"] for kind in found.values() for entry in kind}
    assert sorted(run.rglob("*")) == before


def _swap(options: dict[str, Any], run: Path) -> None:
    shutil.copy(run / "train/LR/p1x2.png", run / "train/LR/p4x2.png")


def _shift(options: dict[str, Any], run: Path) -> None:
    gt = cv2.imread(str(run / "train/HR/p3.png"))
    moved = np.roll(gt, (6, -4), axis=(0, 1))
    cv2.imwrite(str(run / "train/LR/p3x2.png"), cv2.resize(moved, (60, 48), interpolation=cv2.INTER_AREA))


def _truncate(options: dict[str, Any], run: Path) -> None:
    path = run / "val/HR/p7.png"
    path.write_bytes(path.read_bytes()[:-900])


def _resize(options: dict[str, Any], run: Path) -> None:
    write_image(run / "train/LR/p2x2.png", _picture(2, 48, 50))


def _lack(options: dict[str, Any], run: Path) -> None:
    (run / "train/LR/p5x2.png").unlink()


def _small(options: dict[str, Any], run: Path) -> None:
    write_image(run / "train/HR/p0.png", _picture(0, 24, 120))
    write_image(run / "train/LR/p0x2.png", imresize(_picture(0, 24, 120), 0.5))


def _misspell(options: dict[str, Any], run: Path) -> None:
    options["train"]["ema_decai"] = 0.9


def _absent(options: dict[str, Any], run: Path) -> None:
    options["datasets"]["val"] |= {"dataroot_gt": "datasets/benchmark/Set5/HR"}


def _loss(options: dict[str, Any], run: Path) -> None:
    options["imports"] = ["own_loss.py"]
    options["train"]["pixel_opt"] = {"type": "FaultyLoss"}


def _metric(options: dict[str, Any], run: Path) -> None:
    options["imports"] = ["own_metric.py"]
    options["val"]["metrics"]["mine"] = {"type": "calculate_faulty"}


def _weights(options: dict[str, Any], run: Path) -> None:
    options["path"] = {"pretrain_network_g": "safmn-x4"}


def _rate(options: dict[str, Any], run: Path) -> None:
    options["train"]["optim_g"]["lr"] = 1e30


def _batch(options: dict[str, Any], run: Path) -> None:
    options["datasets"]["train"]["batch_size_per_gpu"] = 7


def _exchange(options: dict[str, Any], run: Path) -> None:
    for path in (run / "train/LR").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[..., ::-1])


def _half_an_lmdb(options: dict[str, Any], run: Path) -> None:
    assert main(["prepare", "lmdb", "train/HR"]) == 0
    assert main(["prepare", "lmdb", "train/LR", "--drop", "x2"]) == 0
    for path in run.rglob("data.mdb"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    section = options["datasets"]["train"]
    section |= {"dataroot_gt": "train/HR.lmdb", "dataroot_lq": "train/LR.lmdb", "io_backend": {"type": "lmdb"}}
    section.pop("filename_tmpl")


def _list(options: dict[str, Any], run: Path) -> None:
    (run / "meta.txt").write_text("q0.png (96,120,3)\n")
    options["datasets"]["train"]["meta_info_file"] = "meta.txt"


def _other_network(options: dict[str, Any], run: Path) -> None:
    options["network_g"] = {"type": "SAFMN", "num_block": 23, "upscaling_factor": 2}


def _other_scale(options: dict[str, Any], run: Path) -> None:
    options["network_g"]["upscaling_factor"] = 4


def _unreadable(options: dict[str, Any], run: Path) -> None:
    (run / "train/HR/p1.png").write_text("no image")


def _dark(options: dict[str, Any], run: Path) -> None:
    path = str(run / "val/LR/p6x2.png")
    cv2.imwrite(path, cv2.imread(path) // 16)


def _niqe(options: dict[str, Any], run: Path) -> None:
    options["val"]["metrics"]["niqe"] = {"type": "calculate_niqe", "crop_border": 2}


def _state(options: dict[str, Any], run: Path) -> None:
    options["path"] = {"resume_state": "absent.state"}


def _width(options: dict[str, Any], run: Path) -> None:
    options["network_g"]["dim"] = 7


FAULTS: dict[str, tuple[Edit, str]] = {
    "LQ of another image": (_swap, r"p4.png and .*p4x2.png do not show the same picture"),
    "LQ shifted": (_shift, r"p3x2.png is shifted against .*p3.png by -[12].[0-9], 3.0 LQ pixels"),
    "GT truncated": (_truncate, r"p7.png"),
    "sizes do not fit": (_resize, r"p2.png is 120x96, .*p2x2.png is 50x48"),
    "LQ missing": (_lack, r"p5x2"),
    "smaller than the patch": (_small, r"p0.png is 120x24, smaller than the patch of 32x32"),
    "misspelt key": (_misspell, r"ema_decai.*ema_decay"),
    "no data": (_absent, r"Set5.*safmn prepare download benchmark"),
    "loss": (_loss, r"own_loss.py.*missing"),
    "metric": (_metric, r"metric 'mine' failed.*no such luck"),
    "weights": (_weights, r"safmn-x4: these weights have dim 36, but the option file says 8"),
    "learning rate": (_rate, r"NaN or Inf.*lower the learning rate"),
    "batch": (_batch, r"7"),
    "red and blue exchanged": (_exchange, r"red and blue are exchanged between .*p0.png and .*p0x2.png"),
    "half of an lmdb": (_half_an_lmdb, r"6 of 6: .*HR.lmdb/data.mdb ends too early [^;]*safmn prepare lmdb$"),
    "list of other images": (_list, r"images that meta.txt lists are not in train/HR: q0.png"),
    "key of another network": (_other_network, r"no argument 'num_block'"),
    "no image": (_unreadable, r"p1.png: cannot be read as an image \(its content is of no known image format\)"),
    "range of values": (_dark, r"p6x2.png is nearly black .*p6.png is not"),
    "image too small for NIQE": (_niqe, r"p6x2.png: metric 'niqe' failed on an image of 120x96: NIQE compares blocks"),
    "state to resume": (_state, r"path.resume_state: there is no file or folder absent.state"),
    "width of the network": (_width, r"dim is 7; it must be a multiple of 4"),
    "scale of the network": (_other_scale, r"upscaling_factor: is 4, but the top-level `scale` is 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, run: Path) -> None:
    edit, expected = FAULTS[fault]
    failing = texts(edited(run, edit), State.FAILS)
    assert re.search(expected, failing, re.DOTALL), failing
    assert not (run / "experiments").exists()


def test_a_file_in_place_of_the_experiments_is_named(run: Path) -> None:
    (run / "experiments").write_text("")
    assert re.search("disk: .*experiments is a file, not a folder", texts(examine_file("run.yml"), State.FAILS))


def test_what_would_be_better_is_said(run: Path) -> None:
    def edit(options: dict[str, Any], run: Path) -> None:
        for kind in ("HR/p0.png", "LR/p0x2.png"):
            shutil.copy(run / "train" / kind, run / "val" / kind)
        cv2.imwrite(str(run / "train/HR/p1.jpg"), _picture(1)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        (run / "train/HR/p1.png").unlink()
        write_image(run / "train/HR/p2.png", np.full((96, 120, 3), 200, np.uint8))
        write_image(run / "train/LR/p2x2.png", np.full((48, 60, 3), 200, np.uint8))
        write_image(run / "train/HR/p3.png", _picture(3).astype(np.uint16) * 257)
        options["train"] |= {"ema_decay": 0.999, "warmup_iter": 200}
        options["train"]["scheduler"]["periods"] = [400]
        options["logger"]["save_checkpoint_freq"] = 5000
        options["datasets"]["train"] |= {"gt_size": 20, "num_worker_per_gpu": 0}

    findings = edited(run, edit)
    assert not texts(findings, State.FAILS)
    better = texts(findings, State.BETTER)
    for expected in (
        r"val \(val images\): 1 of its images are also in the training set \(val/HR/p0.png\)",
        r"1 GT images are JPEG files \(train/HR/p1.jpg\)",
        r"1 images show one colour only \(train/HR/p2.png\)",
        "16 bits and 8 bits are mixed",
        "averages over about 1000 iterations",
        "warmup_iter: the learning rate rises for 200 iterations",
        "periods end at 400",
        "save_checkpoint_freq: is above total_iter",
        "gt_size: gives LQ patches of 10 pixels",
    ):
        assert re.search(expected, better), f"{expected}\n{better}"


def test_photographs_of_an_installed_package_are_no_fault(run: Path) -> None:
    def edit(options: dict[str, Any], run: Path) -> None:
        for section in options["datasets"].values():
            for key in ("dataroot_gt", "dataroot_lq", "filename_tmpl"):
                section.pop(key, None)
        options["datasets"]["train"] |= {"type": "BundledPhotos", "names": ["coffee.png", "chelsea.png"]}
        options["datasets"]["val"] |= {"type": "BundledPhotos", "names": ["coffee.png", "chelsea.png"]}

    findings = edited(run, edit)
    assert not texts(findings, State.FAILS)
    assert "train (train images): 2 images; 2 samples were drawn" in texts(findings, State.FINE)


@pytest.mark.parametrize("is_expected", [False, True])
def test_a_set_that_is_given_on_request_only_is_left_out(is_expected: bool, run: Path) -> None:
    absent = {"name": "Manga109", "type": "PairedImageDataset", "dataroot_gt": "datasets/benchmark/Manga109/HR"}
    absent |= {"dataroot_lq": "datasets/benchmark/Manga109/LR_bicubic/X2", "filename_tmpl": "{}x2"}

    def edit(options: dict[str, Any], run: Path) -> None:
        for key in ("train", "logger"):
            del options[key]
        options["datasets"] = {"test_1": options["datasets"]["val"], "test_2": absent}
        options["expect"] = {"Manga109": {"psnr": 30.0}} if is_expected else {}

    findings = edited(run, edit)
    assert ("Manga109" in texts(findings, State.FAILS)) == is_expected
    assert ("test_2 (Manga109): is left out" in texts(findings, State.BETTER)) != is_expected


def test_settings_that_spoil_a_run_are_said(run: Path) -> None:
    def edit(options: dict[str, Any], run: Path) -> None:
        for path in (run / "train/LR").iterdir():
            gt = cv2.imread(str(run / "train/HR" / f"{path.stem[:-2]}.png"))
            cv2.imwrite(str(path), cv2.resize(gt, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC))
        options["train"]["optim_g"]["lr"] = 0.3
        options["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [50, 400]}
        options["val"]["metrics"]["psnr"]["crop_border"] = 0
        options["val"]["metrics"]["psnr"]["better"] = "lower"

    findings = edited(run, edit)
    assert not texts(findings, State.FAILS)
    better = texts(findings, State.BETTER)
    for expected in (
        r"train \(train images\): the LQ images were made by OpenCV's bicubic, which does not smooth, not by MATLAB's",
        "optim_g: a learning rate of 0.3 is very high for Adam",
        "loss: rises from",
        "scheduler: 1 of 2 milestones come after total_iter 100",
        "val.metrics.psnr: crop_border is 0; papers leave out 2",
        "val.metrics.psnr: better is lower, so the worst weights would be kept",
    ):
        assert re.search(expected, better), f"{expected}\n{better}"


def test_a_batch_that_does_not_fit_is_not_tried(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safmn.doctor.run.free_bytes", lambda device: 1_000_000)

    def edit(options: dict[str, Any], run: Path) -> None:
        options["datasets"]["train"] |= {"batch_size_per_gpu": 500, "dataset_enlarge_ratio": 100}

    failing = texts(edited(run, edit), State.FAILS)
    assert re.search(
        r"memory: a batch of 500 needs about \d+ GB.*batch_size_per_gpu: \d+ with train.accumulate", failing
    )


def test_kernels_are_told_apart() -> None:
    gt = [np.ascontiguousarray(data.astronaut()[top : top + 96, 100:220]) for top in (60, 160, 260)]

    def kernel(reduce: Callable[[np.ndarray], np.ndarray]) -> str | None:
        return other_kernel([Compared(one, reduce(one), "gt", "lq", 2) for one in gt])

    noise = np.random.default_rng(0)
    assert kernel(lambda one: imresize(one, 0.5)) is None
    assert kernel(lambda one: (imresize(one, 0.5) * 0.9 + noise.integers(0, 9, (48, 60, 3))).astype(np.uint8)) is None
    assert kernel(lambda one: one[::2, ::2]) == "leaving out pixels (nearest)"
    area = cv2.INTER_AREA
    assert "blocks" in str(kernel(lambda one: cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=area)))


def test_images_are_read_once_and_again_when_they_change(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safmn.doctor import sets
    from safmn.options import load_options

    looked: list[str] = []
    look = sets._look

    def counted(item: Any, *rest: Any, **more: Any) -> Any:
        looked.append(Path(item.gt).name)
        return look(item, *rest, **more)

    monkeypatch.setattr(sets, "_look", counted)
    options = load_options("run.yml", mode="train")
    sets.examine_sets(options)
    assert sorted(looked) == [f"p{number}.png" for number in range(8)]
    looked.clear()
    write_image(run / "train/HR/p2.png", _picture(2, 98, 122))
    _truncate({}, run)
    for _ in range(2):  # what is faulty is not remembered
        findings, _ = sets.examine_sets(options)
        assert looked == (["p2.png", "p7.png"] if len(looked) == 2 else ["p2.png", "p7.png", "p2.png", "p7.png"])
    assert len(looked) == 4
    assert "p7.png" in texts(findings, State.FAILS)


def test_a_test_file_is_tried_with_its_weights(run: Path) -> None:
    options = yaml.safe_load((run / "run.yml").read_text())
    section = {**options["datasets"]["val"]}
    plan = {
        "name": "mine",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"test": section},
        "network_g": {"type": "SAFMN", "upscaling_factor": 2},
        "path": {"pretrain_network_g": "safmn-x2"},
        "val": options["val"],
    }
    (run / "test.yml").write_text(yaml.safe_dump(plan, sort_keys=False))
    findings = examine_file("test.yml")
    assert not texts(findings, State.FAILS)
    assert "trial test: the weights fit the network" in texts(findings, State.FINE)
    failing = texts(examine_file("test.yml", ["path:pretrain_network_g=safmn-x4"]), State.FAILS)
    assert "upscaling_factor 4" in failing


def test_a_missing_option_file_is_a_mistake_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "-opt", "absent.yml"]) == 2
    assert "absent.yml" in capsys.readouterr().err
