"""The files that the commands in the documents name, small: photographs, data sets, weights, option files, results."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from skimage import data
from skimage.io import imsave

import safmn
from safmn.evaluation.published import SETS
from safmn.imaging import imresize, write_image
from safmn.registry import ARCH_REGISTRY, build
from safmn.value_types import Array

REPOSITORY = Path(__file__).resolve().parent.parent
PEERS = {
    "rlfn_x4": {"type": "RLFN"},
    "rfdn_x4": {"type": "RFDN"},
    "pan_x4": {"type": "PAN", "scale": 4},
    "vdsr": {"type": "VDSR"},
}
"""Weight files of docs/peers.md: the networks, which get random weights."""
PHOTOS = ("photo.jpg", "photo.png", "holiday/1.jpg", "holiday/2.png", "datasets/real_test/a.png", "pictures/old.jpg")


def make(world: Path) -> None:
    """Write everything into a folder."""
    photo = np.ascontiguousarray(data.astronaut()[100:164, 180:260])  # 80x64
    for name in PHOTOS:
        write_image(world / name, photo)
    (world / "scans/old").mkdir(parents=True)
    imsave(world / "scans/old/page.tif", photo, check_contrast=False)
    for name in ("options", "scripts", "safmn", "docs"):
        (world / name).symlink_to(REPOSITORY / name)
    _training(world / "datasets")
    _benchmarks(world / "datasets/benchmark")
    _weights(world)
    _parts(world)
    _runs(world)
    for gt in (world / "datasets/benchmark").glob("*/HR"):
        for name in ("theirs", "mine"):
            shutil.copytree(gt, world / "outputs" / name / gt.parent.name)
    if importlib.util.find_spec("av") is not None:
        for name in ("film.mp4", "film.mkv", "dv.avi", "holiday.mp4"):
            _film(world / name, photo)


def _training(root: Path) -> None:
    large = np.ascontiguousarray(np.tile(data.chelsea()[:240, :240], (2, 2, 1)))  # 480x480: one sub-image
    write_image(root / "DF2K/HR/0001.png", large)
    for place in ("LSDIR/HR/a/1", "photos/train/1"):
        write_image(root / f"{place}.png", large[:192, :192])
    write_image(root.parent / "photos/HR/mine.png", large[:96, :96])


def _benchmarks(root: Path) -> None:
    for number, set_name in enumerate((*SETS, "DIV2K_val100")):
        names = ("butterfly", "bird") if set_name == "Set5" else ("image",)
        for place, name in enumerate(names):
            gt = np.ascontiguousarray(data.coffee()[30 * number + 100 * place :][:144, 100:292])  # 192x144
            write_image(root / set_name / "HR" / f"{name}.png", gt)
            for scale in (2, 3, 4):
                file = root / set_name / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png"
                write_image(file, imresize(gt, 1 / scale))


def _weights(world: Path) -> None:
    network = safmn.load_network("safmn-x4")
    for name in ("my_x4", "my"):
        torch.save({"params": network.state_dict()}, world / f"{name}.pth")
    section = {"type": "SAFMN", "dim": 36, "n_blocks": 8, "ffn_scale": 2.0, "upscaling_factor": 4}
    option_file = {"name": "my_x4", "model_type": "SRModel", "scale": 4, "num_gpu": 0, "network_g": section}
    (world / "my_x4.yml").write_text(yaml.safe_dump(option_file | {"path": {"pretrain_network_g": "my_x4.pth"}}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, peer in PEERS.items():
            torch.save(build(ARCH_REGISTRY, peer).state_dict(), world / f"{name}.pth")


def _parts(world: Path) -> None:
    """Write the two files that docs/components.md prints."""
    text = (REPOSITORY / "docs/components.md").read_text(encoding="utf-8")
    (world / "my_parts.py").write_text(next(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))[1])
    (world / "my.yml").write_text(next(re.finditer(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE))[1])


def _runs(world: Path) -> None:
    """Write the option files of two runs, and of a test; :data:`FIRST` are the commands that carry them out."""
    pairs = {
        "type": "PairedImageDataset",
        "dataroot_gt": "datasets/benchmark/Set5/HR",
        "dataroot_lq": "datasets/benchmark/Set5/LR_bicubic/X4",
        "filename_tmpl": "{}x4",
    }
    options = {
        "name": "my_x4",
        "model_type": "SRModel",
        "scale": 4,
        "num_gpu": 0,
        "datasets": {
            "train": {"name": "mine", **pairs, "gt_size": 32, "batch_size_per_gpu": 1, "num_worker_per_gpu": 0},
            "val": {"name": "Set5", **pairs},
        },
        "network_g": {"type": "SAFMN", "dim": 8, "n_blocks": 1, "upscaling_factor": 4},
        "train": {
            "total_iter": 4,
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [4]},
            "losses": [{"type": "L1Loss"}],
        },
        "val": {
            "val_freq": 2,
            "save_img": True,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": True}},
        },
        "logger": {"print_freq": 1, "save_checkpoint_freq": 4},
    }
    for name in ("run", "train"):
        (world / f"{name}.yml").write_text(yaml.safe_dump(options))
    for name in ("hr", "lr"):
        gt = np.ascontiguousarray(data.chelsea()[:48, :48])
        write_image(world / name / "a.png", gt if name == "hr" else imresize(gt, 0.5))


FIRST = (
    "safmn train -opt run.yml",
    "safmn train -opt run.yml --force_yml name=my_x4_lr2 train:optim_g:lr=5e-4",
    "safmn test --weights my_x4.pth --save_img "
    "--set Set5=datasets/benchmark/Set5/HR,datasets/benchmark/Set5/LR_bicubic/X4",
    "safmn test -opt options/test_x4.yml --force_yml expect={} num_gpu=0 datasets:test_2=null datasets:test_3=null "
    "datasets:test_4=null datasets:test_5=null",
)
"""Commands that make the runs and results that documents name; run before the documents' own."""


def _film(path: Path, frame: Array) -> None:
    import av

    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
        for _ in range(10):  # fewer than its reordering needs confuse x265
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        film.mux(stream.encode())
