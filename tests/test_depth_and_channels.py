"""Images keep their depth and channels through loading, training and testing; LQ images can be made from GT images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_run
import torch
import yaml
from torch import Tensor, nn

from safmn import registry
from safmn.data import PairedImageDataset, SingleImageDataset
from safmn.errors import DataError, OptionError
from safmn.evaluation.scoring import evaluate
from safmn.imaging import imresize, read_image, write_image
from safmn.prepare.image_lmdb import make_lmdb
from safmn.prepare.lr import make_lr
from safmn.test import main as run_test
from safmn.train import main as train

Array = np.ndarray[Any, Any]
CASES = {"rgb": 3, "grey": 1, "rgba": 4, "y": 1}


class Enlarge(nn.Module):
    """A trainable network for any number of channels: repeats pixels and multiplies by one number."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x * self.gain, scale_factor=2, mode="nearest")


def make_set(folder: Path, channels: int, dtype: type, count: int = 3) -> dict[str, Any]:
    """Write GT images whose pixels are repeated LQ pixels, and return the section of the data set."""
    rng = np.random.default_rng(channels)
    for number in range(count):
        lq = rng.integers(0, np.iinfo(dtype).max + 1, (12, 16, channels)).astype(dtype)
        for kind, image in (("lr", lq), ("hr", lq.repeat(2, 0).repeat(2, 1))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_image(folder / kind / f"{number}.png", image[..., 0] if channels == 1 else image)
    return {
        "name": "set", "type": "PairedImageDataset", "scale": 2, "phase": "val", "dataroot_gt": str(folder / "hr"),
        "dataroot_lq": str(folder / "lr"),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("color", ["rgb", "grey", "rgba"])
def test_pixels_keep_their_values(color: str, dtype: type, tmp_path: Path) -> None:
    channels, white = CASES[color], np.iinfo(dtype).max
    section = {**make_set(tmp_path, channels, dtype), "color": color}
    item = PairedImageDataset(section)[0]
    stored = read_image(tmp_path / "lr/0.png").reshape(12, 16, channels)
    levels = (item["lq"].permute(1, 2, 0).double() * white).round().numpy()
    assert (levels == stored).all()
    assert item["bits"] == 8 * np.dtype(dtype).itemsize
    patch = PairedImageDataset({**section, "phase": "train", "gt_size": 16}).sample(1, np.random.default_rng(0))
    assert patch["lq"].shape == (channels, 8, 8)
    # the network's output equals the GT in all its bits, so that the saved image does, too
    result = evaluate(
        Enlarge(channels), PairedImageDataset(section), name="set", device="cpu", save_dir=tmp_path / "out",
        metrics={"psnr": {"type": "calculate_psnr", "crop_border": 0}}, progress=False,
    )  # fmt: skip
    assert result.mean["psnr"] == float("inf")
    saved = read_image(tmp_path / "out/0.png")
    assert saved.dtype == dtype
    assert (saved.reshape(24, 32, channels) == read_image(tmp_path / "hr/0.png").reshape(24, 32, channels)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("color", ["rgb", "grey", "rgba"])
def test_an_lmdb_and_made_lr_images_keep_the_pixels(color: str, dtype: type, tmp_path: Path) -> None:
    """Also alpha, which both left out before."""
    section = {**make_set(tmp_path, CASES[color], dtype), "color": color}
    for kind in ("hr", "lr"):
        make_lmdb(tmp_path / kind, tmp_path / f"{kind}.lmdb", jobs=1)
        assert make_lmdb(tmp_path / kind, tmp_path / f"{kind}.lmdb", jobs=1) == 0  # up to date: the same pixels
    roots = {f"dataroot_{name}": str(tmp_path / f"{kind}.lmdb") for name, kind in (("gt", "hr"), ("lq", "lr"))}
    held = PairedImageDataset({**section, **roots, "io_backend": {"type": "lmdb"}})
    for expected, found in zip(PairedImageDataset(section), held, strict=True):
        assert torch.equal(expected["lq"], found["lq"])
        assert torch.equal(expected["gt"], found["gt"])
        assert expected["bits"] == found["bits"]
    make_lr(tmp_path / "hr", tmp_path / "small", [2], jobs=1)
    for number, item in enumerate(PairedImageDataset({**section, "dataroot_lq": None})):
        image = read_image(tmp_path / f"small/X2/{number}x2.png").reshape(12, 16, -1)
        assert image.dtype == dtype
        assert (image == (item["lq"].permute(1, 2, 0).double() * np.iinfo(dtype).max).round().numpy()).all()


def test_scores_of_16_bits_see_less_than_a_level_of_8_bits(tmp_path: Path) -> None:
    section = make_set(tmp_path, 3, np.uint16, count=1)
    gt = np.clip(read_image(tmp_path / "hr/0.png").astype(int) + 50, 0, 65535).astype(np.uint16)
    write_image(tmp_path / "hr/0.png", gt)
    metrics = {
        "psnr": {"type": "calculate_psnr", "crop_border": 0},
        "worst": {"type": "calculate_max_error", "crop_border": 0},
    }
    found = evaluate(Enlarge(), PairedImageDataset(section), name="set", metrics=metrics, device="cpu", progress=False)
    assert found.mean["psnr"] == pytest.approx(20 * np.log10(65535 / 50), abs=0.01)
    assert found.mean["worst"] == pytest.approx(50 / 257)


def test_colours_become_grey_and_alpha_opaque(tmp_path: Path) -> None:
    section = make_set(tmp_path, 3, np.uint8, count=1)
    rgb = read_image(tmp_path / "lr/0.png")
    grey = PairedImageDataset({**section, "color": "grey"})[0]["lq"]
    assert (np.abs(grey[0].numpy() * 255 - rgb @ [0.299, 0.587, 0.114]) <= 0.51).all()
    rgba = PairedImageDataset({**section, "color": "rgba"})[0]["lq"]
    assert (rgba[3] == 1).all()
    single = SingleImageDataset({"name": "s", "type": "x", "dataroot_lq": section["dataroot_lq"], "color": "grey"})
    assert single[0]["lq"].shape == (1, 12, 16)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("phase", ["train", "val"])
def test_opaque_lq_images_of_transparent_gt_images_are_refused(phase: str, dtype: type, tmp_path: Path) -> None:
    """They were made before alpha was kept: a network would learn to make every image transparent."""
    section = {**make_set(tmp_path, 4, dtype, count=1), "color": "rgba", "phase": phase}
    if phase == "train":
        section |= {"gt_size": 16, "use_hflip": True, "use_rot": True}
    small = read_image(tmp_path / "lr/0.png")
    write_image(tmp_path / "lr/0.png", small[..., :3])
    dataset = PairedImageDataset(section)
    with pytest.raises(DataError, match=r"hr/0\.png is partly transparent, but .*lr/0\.png is opaque: .*prepare lr"):
        dataset.sample(0, np.random.default_rng(0)) if phase == "train" else dataset[0]
    for alpha in (np.iinfo(dtype).max, small[..., 3]):  # an opaque GT image, or an LQ image with alpha
        small[..., 3] = alpha
        write_image(tmp_path / "hr/0.png", small.repeat(2, 0).repeat(2, 1))
        write_image(tmp_path / "lr/0.png", small[..., :3] if np.isscalar(alpha) else small)
        assert PairedImageDataset({**section, "phase": "val"})[0]["lq"].shape == (4, 12, 16)


@pytest.mark.parametrize("color", ["grey", "rgba", "y"])
def test_a_run_trains_and_tests_with_these_channels(
    color: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    registry.ARCH_REGISTRY.register(Enlarge)
    try:
        section = make_set(tmp_path, 3 if color == "y" else CASES[color], np.uint16)
        section = {key: value for key, value in section.items() if key not in ("scale", "phase")} | {"color": color}
        data = tiny_run.options(tmp_path, total_iter=2, fft_opt=None)
        data["network_g"] = {"type": "Enlarge", "channels": CASES[color]}
        for name in ("train", "val"):
            data["datasets"][name] = {**data["datasets"][name], **section, "name": name}
        data["datasets"]["train"]["gt_size"] = 16
        (tmp_path / "run.yml").write_text(yaml.safe_dump(data))
        monkeypatch.chdir(tmp_path)
        assert train(["-opt", "run.yml"]) == 0
        data["datasets"] = {"test_1": {**section, "name": "test"}}
        data["path"] = {"pretrain_network_g": "experiments/tiny/models/net_g_2.pth"}
        data["val"] |= {"save_img": True, "self_ensemble": True}
        del data["train"]
        (tmp_path / "test.yml").write_text(yaml.safe_dump(data))
        assert run_test(["-opt", "test.yml"]) == 0
        sets = json.loads((tmp_path / "results/tiny/metrics.json").read_text())["sets"]
        assert float(sets["test"]["mean"]["psnr"]) > 40
        saved = read_image(tmp_path / "results/tiny/visualization/test/0_tiny.png")
        assert (saved.dtype, saved.ndim) == (np.uint16, 3 if color == "rgba" else 2)
    finally:
        del registry.ARCH_REGISTRY._obj_map["Enlarge"]


# --- LQ images made from GT images ----------------------------------------------------------------------------------


def photos(folder: Path, dtype: type = np.uint8) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        image = cv2.GaussianBlur(rng.integers(0, 256, (50, 63, 3)).astype(np.uint8), (5, 5), 1)
        write_image(folder / f"{number}.png", image if dtype == np.uint8 else image.astype(np.uint16) * 257)
    return {"name": "made", "type": "PairedImageDataset", "dataroot_gt": str(folder), "dataroot_lq": None}


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_made_lq_images_are_bicubic_reductions_also_in_patches(scale: int, dtype: type, tmp_path: Path) -> None:
    section = {**photos(tmp_path, dtype), "scale": scale, "use_hflip": True, "use_rot": True}
    item = PairedImageDataset({**section, "phase": "val"})[1]
    gt = read_image(tmp_path / "1.png")[: 50 // scale * scale, : 63 // scale * scale]
    whole = imresize(gt, 1 / scale) if scale > 1 else gt
    white = np.iinfo(dtype).max
    assert ((item["lq"].permute(1, 2, 0).double() * white).round().numpy() == whole).all()
    assert item["gt"].shape[-2:] == gt.shape[:2]
    reductions = torch.from_numpy((whole / white).astype(np.float32)).permute(2, 0, 1)
    train_set = PairedImageDataset({**section, "phase": "train", "gt_size": 5 * scale})
    for seed in range(40):
        lq = train_set.sample(1, np.random.default_rng(seed))["lq"]
        turned = [torch.rot90(turn, k, (1, 2)) for k in range(4) for turn in (lq, lq.flip(2))]
        windows = reductions.unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4)
        assert any((windows - each).abs().amax((2, 3, 4)).min() < 1e-6 for each in turned)


def test_noise_and_jpeg_of_made_lq_images(tmp_path: Path) -> None:
    section = {**photos(tmp_path), "scale": 2}
    plain = PairedImageDataset({**section, "phase": "val"})[0]["lq"] * 255
    noisy = PairedImageDataset({**section, "phase": "val", "lq": {"noise": 10}})
    difference = noisy[0]["lq"] * 255 - plain
    assert 8 < difference.std() < 12
    assert torch.equal(noisy[0]["lq"], noisy[0]["lq"])  # repeatable
    grey = PairedImageDataset({**section, "phase": "val", "lq": {"noise": [10, 20], "grey_noise": 1}})[0]["lq"] * 255
    assert (grey - plain - (grey - plain).mean(0)).abs().mean() < 2  # apart from clipping, the same in all channels
    jpeg = PairedImageDataset({**section, "phase": "val", "lq": {"jpeg": 30}})[0]["lq"] * 255
    bgr = np.ascontiguousarray(plain.permute(1, 2, 0).numpy().round().astype(np.uint8)[..., ::-1])
    decoded = cv2.imdecode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)
    assert (jpeg.permute(1, 2, 0).round().numpy() == decoded[..., ::-1]).all()
    drawn = PairedImageDataset({**section, "phase": "train", "gt_size": 16, "lq": {"noise": [0, 50], "jpeg": [30, 90]}})
    one, again, other = (drawn.sample(0, np.random.default_rng(seed))["lq"] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_mistakes_of_made_lq_images_are_named(tmp_path: Path) -> None:
    section = {**photos(tmp_path, np.uint16), "scale": 2, "phase": "val"}
    with pytest.raises(OptionError, match=r"lq\.jpeg: JPEG has 8 bits .*, not 16 bits, 3 channels"):
        PairedImageDataset({**section, "lq": {"jpeg": 30}})[0]
    for wrong in ({"noise": -1}, {"noise": [9, 3]}, {"jpeg": 0}, {"jpeg": [30, 101]}):
        with pytest.raises(OptionError, match=f"{next(iter(wrong))}: .* is not in"):
            PairedImageDataset({**section, "lq": wrong})
    with pytest.raises(OptionError, match="remove dataroot_lq"):
        PairedImageDataset({**section, "dataroot_lq": str(tmp_path), "lq": {"noise": 3}})
    del section["dataroot_lq"]  # forgotten, not null
    with pytest.raises(OptionError, match="missing key `dataroot_lq`"):
        PairedImageDataset(section)
