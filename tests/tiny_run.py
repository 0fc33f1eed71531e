"""A training run that is small enough to repeat many times: photographs, a tiny SAFMN, separate processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import yaml
from skimage import data

ITERATIONS = 24
MISFIT = "do not fit together"  # in the message for an exception in the first step of a run


def make_images(folder: Path, scale: int = 2) -> None:
    """Write five 64x64 crops of photographs for training and two for validation, with LQ images."""
    photos = [data.astronaut(), data.chelsea(), data.coffee()]
    for number in range(7):
        top, left = 40 + 30 * number, 60 + 17 * number
        hr = photos[number % 3][top : top + 64, left : left + 64, ::-1]
        part = "val" if number >= 5 else "train"
        lr = cv2.resize(hr, (64 // scale, 64 // scale), interpolation=cv2.INTER_AREA)
        for kind, image in (("hr", hr), ("lr", lr)):
            path = folder / part / kind / f"photo{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), image)


def options(folder: Path, **train: Any) -> dict[str, Any]:
    """Return an option file as a dict; epochs have 5 iterations, validation is every 6, checkpoints are every 3."""

    def section(part: str) -> dict[str, Any]:
        return {
            "name": part,
            "type": "PairedImageDataset",
            "dataroot_gt": str(folder / part / "hr"),
            "dataroot_lq": str(folder / part / "lr"),
            "io_backend": {"type": "disk"},
        }

    return {
        "name": "tiny",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 7,
        "datasets": {
            "train": {
                **section("train"),
                "gt_size": 32,
                "use_hflip": True,
                "use_rot": True,
                "batch_size_per_gpu": 2,
                "num_worker_per_gpu": 0,
                "dataset_enlarge_ratio": 2,
            },
            "val": section("val"),
        },
        "network_g": {"type": "SAFMN", "dim": 8, "n_blocks": 1, "ffn_scale": 2.0, "upscaling_factor": 2},
        "path": {"experiments_root": str(folder / "experiments")},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]},
            "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [ITERATIONS], "eta_min": 1e-5},
            "total_iter": ITERATIONS,
            "warmup_iter": 4,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
            "fft_opt": {"type": "FFTLoss", "loss_weight": 0.05, "reduction": "mean"},
            **train,
        },
        "val": {
            "val_freq": 6,
            "pbar": False,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": False}},
        },
        "logger": {"print_freq": 1, "save_checkpoint_freq": 3},
    }


def real_options(folder: Path, root: Path, model: str, workers: int) -> dict[str, Any]:
    """Return the options of a tiny run on degraded photographs: images in ``folder``, experiments in ``root``."""
    result = options(folder)
    result |= {"model_type": model, "degradation": {"crop_size": 64}}
    result["path"]["experiments_root"] = str(root / "experiments")
    for section in result["datasets"].values():
        section["type"] = "RealESRGANDataset"
        del section["dataroot_lq"]
    result["datasets"]["train"]["num_worker_per_gpu"] = workers
    if model == "RealSRModel":
        return result | {"gt_usm": True}
    result["degradation"] |= {"mode": "batch_pool", "queue_size": 4}
    result["train"] |= {
        "optim_d": {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]},
        "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1},
        "ldl_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        "net_d_init_iters": 4,
    }
    discriminator = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 8}
    return result | {"l1_gt_usm": True, "percep_gt_usm": True, "gan_gt_usm": False, "network_d": discriminator}


def write_options(folder: Path, content: dict[str, Any], name: str = "options.yml") -> Path:
    """Write an option file and return its path."""
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _train(arguments: Sequence[str], prepare: Callable[[], None] | None) -> None:
    import torch

    # For the loader's workers: the system's own method, as in a real run, or that of pytest --start-method.
    own_method = multiprocessing.get_all_start_methods()[0]
    multiprocessing.set_start_method(os.environ.get("SAFMN_TEST_START_METHOD", own_method), force=True)
    torch.set_num_threads(1)
    log = Path(arguments[1]).with_suffix(".log")  # stderr of every process of this run
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if prepare:
        prepare()
    from safmn.train import main

    raise SystemExit(main(list(arguments)))


_context = multiprocessing.get_context("forkserver")  # processes start fast from one that has imported everything
_context.set_forkserver_preload(["safmn.train", "safmn.training.build", "torch.utils.data"])


def start(option_file: Path, *arguments: str, prepare: Callable[[], None] | None = None) -> Any:
    """Start a training process, which first calls ``prepare``, and return the ``multiprocessing.Process``."""
    process = _context.Process(target=_train, args=(["-opt", str(option_file), *arguments], prepare))
    process.start()
    return process


def finish(option_file: Path, *arguments: str) -> int:
    """Run a training process to its end and return its exit status."""
    process = start(option_file, *arguments)
    process.join()
    return int(process.exitcode or 0)


def kill_after(option_file: Path, seconds: float) -> bool:
    """Resume the run, kill it with SIGKILL after ``seconds``, and return whether it was still running."""
    process = start(option_file, "--auto_resume")
    process.join(seconds)
    running = process.is_alive()
    if running:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return running


def fingerprint(folder: Path) -> dict[str, str]:
    """Return SHA-256 of the files that must not depend on interruptions: checkpoints, weights, record of losses."""
    root = folder / "experiments" / "tiny"
    files = sorted((root / "training_states").rglob("*.*")) + sorted((root / "models").glob("*.pth"))
    prints = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return prints | {"record": hashlib.sha256((root / "record.jsonl").read_bytes()).hexdigest()}


def record(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of the record of losses and validations."""
    return [json.loads(line) for line in (folder / "experiments" / "tiny" / "record.jsonl").read_text().splitlines()]


def timed(option_file: Path) -> float:
    """Return the seconds that an uninterrupted run takes."""
    began = time.perf_counter()
    assert finish(option_file) == 0
    return time.perf_counter() - began
