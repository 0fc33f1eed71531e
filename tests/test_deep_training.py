"""Training images with 16 bits keep their depth from the folder to the batch, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from data_helpers import make_store, paired_section

from safmn.cli.prepare import main as prepare
from safmn.data import build_dataset
from safmn.data.store_format import StoreFile
from safmn.degradations.operations import from_uint8
from safmn.errors import DataError
from safmn.imaging import imresize, read_rgb, write_image

SIDE = 48  # width and height of GT images


@pytest.fixture(params=[".png", ".tif"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """The folders of an HR and an LR image with 16 bits, and the HR image."""
    gt = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE, 3)).astype(np.uint16)
    lq = imresize(gt, 1 / 2)
    for name, pixels in (("HR/a", gt), ("LR/ax2", lq)):
        path = tmp_path / (name + request.param)
        path.parent.mkdir(exist_ok=True)
        if request.param == ".png":
            write_image(path, pixels)
        else:
            tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", predictor=True)
    return tmp_path / "HR", tmp_path / "LR", gt


def test_batches_have_16_bits(folders: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    hr, lr, gt = folders
    expected = torch.from_numpy(gt.transpose(2, 0, 1).astype(np.float32) / 65535)
    sample = build_dataset(paired_section(hr, lr), phase="val", scale=2)[0]
    assert torch.equal(sample["gt"], expected)
    assert sample["lq"].dtype == torch.float32
    assert len((sample["lq"] * 255).frac().unique()) > 100  # levels between those of 8 bits
    for folder, drop in ((hr, ""), (lr, "x2")):
        assert prepare(["lmdb", str(folder), "--drop", drop] if drop else ["lmdb", str(folder)]) == 0
    section = paired_section(tmp_path / "HR.lmdb", tmp_path / "LR.lmdb", io_backend={"type": "lmdb"})
    from_lmdb = build_dataset(section, phase="val", scale=2)[0]
    assert torch.equal(from_lmdb["gt"], expected)
    assert torch.equal(from_lmdb["lq"], sample["lq"])


def test_prepared_images_have_16_bits(folders: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    hr, _, gt = folders
    assert prepare(["lr", "--hr", str(hr), "-o", str(tmp_path / "made"), "--scales", "2"]) == 0
    assert np.array_equal(read_rgb(tmp_path / "made/X2/ax2.png", deep=True), imresize(gt, 1 / 2))
    assert prepare(["subimages", "--hr", str(hr), "-o", str(tmp_path / "sub"), "--crop", "24", "--step", "24"]) == 0
    assert np.array_equal(read_rgb(tmp_path / "sub/a_s004.png", deep=True), gt[24:, 24:])


def test_a_store_refuses_16_bits(folders: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    hr, lr, gt = folders
    with pytest.raises(DataError, match=r"a\.(png|tif) has 16 bits"):
        make_store(hr, lr, tmp_path / "a.store")
    eight = (gt >> 8).astype(np.uint8)
    for path, pixels in ((next(hr.iterdir()), eight), (next(lr.iterdir()), eight[::2, ::2])):
        write_image(path, pixels.astype(np.uint16) * 257)  # 16 bits with the values of 8 bits
    store = StoreFile(make_store(hr, lr, tmp_path / "a.store"))
    assert np.array_equal(store.gt(0), eight.transpose(2, 0, 1))


def test_degradation_keeps_all_bits_of_its_input() -> None:
    pixels = np.arange(0, 65536, 97, dtype=np.uint16)
    assert np.array_equal(from_uint8(pixels), pixels.astype(np.float32) / np.float32(65535))
