"""Patch weights: where patches are drawn, files that do not fit, and scripts/zoo/hardness.py, which makes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import hardness
import numpy as np
import pytest
import torch
from data_helpers import make_folders, make_store
from skimage import data

from safmn.data import MixedDataset, PatchStore, SampleKey, TrainingLoader, build_dataset, sample_rng
from safmn.data.patch_weights import PatchWeights, grid_of
from safmn.data.store_format import StoreFile
from safmn.errors import DataError
from safmn.imaging import imresize, write_image
from safmn.training.build import _fingerprint


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(*make_folders(tmp_path), tmp_path / "images.store")


def weights_of(store: Path, values: dict[tuple[int, int, int], float] | None = None, cell: int = 8) -> PatchWeights:
    """Return weights for a store: 1 everywhere, or only ``values`` of (image, row, column)."""
    images = StoreFile(store).index.images
    grids = [grid_of(image.lq_height, image.lq_width, cell) for image in images]
    cells = [np.full(grid, 0.0 if values else 1.0) for grid in grids]
    for (image, row, column), value in (values or {}).items():
        cells[image][row, column] = value
    sizes = np.array([(image.lq_height, image.lq_width) for image in images])
    return PatchWeights(cell, [image.hr.name for image in images], sizes, np.concatenate([c.ravel() for c in cells]))


def section(store: Path, **more: Any) -> dict[str, Any]:
    return {"type": "PatchStore", "name": "s", "dataroot": str(store), "gt_size": 32, **more}


def test_patches_contain_their_points_and_follow_the_weights(store: Path, tmp_path: Path) -> None:
    weights = weights_of(store, {(1, 0, 1): 3.0, (3, 1, 0): 1.0})
    weights.save(tmp_path / "w.npz")
    dataset = build_dataset(section(store, patch_weights=str(tmp_path / "w.npz")), phase="train", scale=2)
    assert isinstance(dataset, PatchStore)
    plan = dataset.plan([SampleKey(0, index) for index in range(2000)], 5)
    names = Counter(Path(path).name for path in plan.paths)
    images = StoreFile(store).index.images
    assert set(names) == {images[1].hr.name, images[3].hr.name}
    assert names[images[1].hr.name] == pytest.approx(1500, abs=80)
    side = dataset.lq_patch
    draws = np.random.default_rng(0).random((500, 3))
    chosen, places = weights.places(draws)
    for image, (down, across, turns), draw in zip(chosen, places, draws, strict=True):
        height, width = images[image].lq_height, images[image].lq_width
        rows, columns = grid_of(height, width, 8)
        row, column = (0, 1) if image == 1 else (1, 0)
        top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
        assert (int(down * rows), int(across * columns)) == (row, column)
        assert top <= down * height <= top + side
        assert left <= across * width <= left + side
        assert turns == draw[2]


def test_equal_weights_draw_every_place_alike() -> None:
    sizes = np.array([(64, 64), (64, 128)])
    weights = PatchWeights(16, ["a", "b"], sizes, np.ones(16 + 32))
    images, places = weights.places(np.random.default_rng(1).random((30000, 3)))
    assert np.mean(images == 0) == pytest.approx(1 / 3, abs=0.01)
    for values in places[images == 1].T:
        counts, _ = np.histogram(values, bins=10, range=(0, 1))
        assert counts.min() > 0.9 * counts.mean()
    assert places.min() >= 0
    assert places.max() < 1


def test_one_sample_and_a_batch_are_the_same_patch(store: Path, tmp_path: Path) -> None:
    weights_of(store, {(0, 0, 0): 1.0, (2, 1, 1): 2.0}).save(tmp_path / "w.npz")
    options = section(store, patch_weights=str(tmp_path / "w.npz"), use_hflip=True, use_rot=True)
    dataset = build_dataset(options, phase="train", scale=2)
    keys = [SampleKey(2, index) for index in range(12)]
    batch = dataset.batch(keys, 7)
    for number, key in enumerate(keys):
        sample = dataset.sample(key.index % len(dataset), sample_rng(7, key))
        assert torch.equal(sample["lq"], batch["lq"][number])
        assert torch.equal(sample["gt"], batch["gt"][number])
        assert sample["gt_path"] == batch["gt_path"][number]
    mixed = build_dataset(
        {"type": "MixedDataset", "name": "m", "gt_size": 32, "parts": {"photos": options}}, phase="train", scale=2
    )
    assert isinstance(mixed, MixedDataset)
    loader = TrainingLoader(mixed, batch_size=2, seed=1)
    [first] = next(loader.batches(0))
    loader.close()
    assert {Path(path).name for path in first["gt_path"]} <= {
        image.hr.name for image in (StoreFile(store).index.images[0], StoreFile(store).index.images[2])
    }


def test_other_weights_are_other_data(store: Path, tmp_path: Path) -> None:
    found = []
    for number, values in enumerate(({(0, 0, 0): 1.0}, {(0, 0, 1): 1.0}, None)):
        path = tmp_path / f"{number}.npz"
        weights_of(store, values).save(path)
        found.append(_fingerprint(build_dataset(section(store, patch_weights=str(path)), phase="train", scale=2)))
    found.append(_fingerprint(build_dataset(section(store), phase="train", scale=2)))
    assert len(set(found)) == 4
    assert "weights" not in found[-1]


def test_weights_that_do_not_fit_are_refused(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    options = section(store, patch_weights=str(path))
    with pytest.raises(DataError, match=r"no such file of patch weights: .*w\.npz"):
        build_dataset(options, phase="train", scale=2)
    path.write_bytes(b"not weights")
    with pytest.raises(DataError, match=r"w\.npz holds no patch weights"):
        build_dataset(options, phase="train", scale=2)
    right = weights_of(store)
    PatchWeights(8, [*right.names[:-1], "other.png"], right.sizes, right.weights).save(path)
    with pytest.raises(DataError, match=r"w\.npz are not for .*images\.store: .*other\.png|images\.store: .* only one"):
        build_dataset(options, phase="train", scale=2)
    with pytest.raises(ValueError, match="not all 0"):
        PatchWeights(8, right.names, right.sizes, 0 * right.weights)
    with pytest.raises(ValueError, match="cells of"):
        PatchWeights(8, right.names, right.sizes, right.weights[1:])


class Halfway(torch.nn.Module):
    """A network that enlarges by 2 with MATLAB's bicubic and then goes half the way to the GT image that it knows."""

    scale = 2

    def __init__(self, gt: np.ndarray, place: tuple[slice, slice]) -> None:
        super().__init__()
        self.gt = gt[place].astype(np.float32)

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        image = (lq[0] * 255).round().byte().permute(1, 2, 0).numpy()
        result = (imresize(image, 2) + self.gt) / 2
        return torch.from_numpy(result / 255).permute(2, 0, 1)[None]


def test_the_script_measures_what_a_network_restores(tmp_path: Path) -> None:
    hr = tmp_path / "HR"
    write_image(hr / "coffee.png", data.coffee()[:384, :384])
    store = StoreFile(make_store(hr, None, tmp_path / "alone.store"))
    gt, lq = store.gt(0).transpose(1, 2, 0), np.ascontiguousarray(store.lq(0).transpose(1, 2, 0))
    squares = np.square((imresize(lq, 2).astype(np.float64) - gt) / 255)
    means = squares.reshape(4, 96, 4, 96, 3).mean(axis=(1, 3, 4))
    row, column = divmod(int(np.argsort(means.ravel())[12]), 4)
    place = np.s_[96 * row : 96 * row + 96, 96 * column : 96 * column + 96]
    bicubic, network = hardness.errors(Halfway(gt, place), store, 0)
    assert bicubic == pytest.approx(means.ravel(), rel=1e-6)
    assert network / bicubic == pytest.approx(0.25, abs=0.03)  # half the error, a quarter of its square


def test_weights_leave_out_what_nothing_restores_and_keep_plain_areas() -> None:
    bicubic = np.array([0.01, 0.01, 0.04, 0.0, 0.0002, 0.09])
    network = np.array([0.0099, 0.001, 0.02, 0.0, 0.0002, 0.0899])
    weights = hardness.weights_of(np.stack([bicubic, network]), least=0.1, left_out=0.2)
    assert weights[5] == 0  # of those that stay as they are, the one with most error
    assert (weights > 0).sum() == 5
    assert weights[2] > weights[1] > weights[0] >= weights[3] == weights[4]
