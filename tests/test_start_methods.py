"""Loader workers that do not fork: what they need can be pickled, and their batches are the same.

``pytest --start-method spawn`` (or ``forkserver``) runs any test like this.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch

from safmn.data import build_dataset
from safmn.data.loader import TrainingLoader
from safmn.data.loading import _Fetcher
from safmn.data.sample_keys import Batch
from safmn.errors import DataError
from safmn.prepare.image_lmdb import make_lmdb
from safmn.prepare.store import main as prepare_store
from safmn.registry import METRIC_REGISTRY

CROPS = {"name": "train", "gt_size": 16, "use_hflip": True, "use_rot": True}
BUNDLED = ("astronaut.png", "chelsea.png", "coffee.png", "camera.png")
KINDS = ("folders", "lmdb", "store", "degraded", "degraded lmdb", "bundled", "drawn", "mixed")


def sections(folder: Path) -> dict[str, dict[str, Any]]:
    """A section of an option file for each kind of training set."""
    tiny_run.make_images(folder)
    hr, lr = folder / "train" / "hr", folder / "train" / "lr"
    for part in (hr, lr):
        make_lmdb(part, part.with_suffix(".lmdb"), jobs=1)
    store = str(folder / "train.store")
    assert prepare_store(["--hr", str(hr), "--lr", str(lr), "--scale", "2", "-o", store]) == 0
    paired = {"type": "PairedImageDataset", "dataroot_gt": str(hr), "dataroot_lq": str(lr), **CROPS}
    lmdbs = {"dataroot_gt": str(hr.with_suffix(".lmdb")), "dataroot_lq": str(lr.with_suffix(".lmdb"))}
    degraded = {"type": "RealESRGANDataset", "dataroot_gt": str(hr), "degradation": {"crop_size": 64}, **CROPS}
    drawn = {"type": "DrawnImages", "length": 8, **CROPS}
    found = {
        "folders": paired | {"io_backend": {"type": "disk"}},
        "lmdb": paired | lmdbs | {"io_backend": {"type": "lmdb"}},
        "store": {"type": "PatchStore", "dataroot": store, **CROPS},
        "degraded": degraded,
        "degraded lmdb": degraded | {"dataroot_gt": lmdbs["dataroot_gt"], "io_backend": {"type": "lmdb"}},
        "bundled": {"type": "BundledPhotos", "names": list(BUNDLED), **CROPS},
        "drawn": drawn,
        "mixed": {"type": "MixedDataset", "parts": {"photos": paired, "drawn": drawn}, **CROPS},
    }
    assert set(found) == set(KINDS)
    return found


@pytest.fixture(scope="module")
def training_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return sections(tmp_path_factory.mktemp("sets"))


def first_batch(section: dict[str, Any], workers: int) -> Batch:
    loader = TrainingLoader(
        build_dataset(section, phase="train", scale=2), batch_size=3, seed=5, num_workers=workers, prefetch_factor=1
    )
    with contextlib.closing(loader), contextlib.closing(loader.batches(2)) as batches:
        batch: Batch = next(batches)[0]
    return batch


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key], key


@pytest.mark.parametrize("kind", KINDS)
def test_every_training_set_can_be_sent_to_a_worker(training_sets: dict[str, dict[str, Any]], kind: str) -> None:
    """Also after it was used, when files are open."""
    loader = TrainingLoader(build_dataset(training_sets[kind], phase="train", scale=2), batch_size=3, seed=5)
    keys = next(loader.keys(2))
    expected = loader.keyed.batch(keys)
    fetcher = pickle.loads(pickle.dumps(_Fetcher(loader.keyed)))
    assert_equal(fetcher.__getitems__(keys), expected)


def test_every_metric_can_be_sent_to_a_worker() -> None:
    names = [name for name in METRIC_REGISTRY.keys() if name.startswith("calculate_")]  # noqa: SIM118 - a registry
    assert len(names) >= 4
    for name in names:
        assert pickle.loads(pickle.dumps(METRIC_REGISTRY.get(name))) is METRIC_REGISTRY.get(name)


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:  # other tests count the children
        time.sleep(0.05)


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"], indirect=True)
def test_workers_that_do_not_fork_load_the_same(training_sets: dict[str, dict[str, Any]], start_method: None) -> None:
    section = training_sets["mixed"]
    assert_equal(first_batch(section, workers=1), first_batch(section, workers=0))


@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_a_data_set_that_cannot_be_sent_is_explained(start_method: None) -> None:
    class Local(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"lq": torch.zeros(1)}

    loader = TrainingLoader(Local(), batch_size=1, seed=0, num_workers=1)
    with pytest.raises(DataError, match=r"Local cannot be sent.*\(spawn\).*`imports`.*num_worker_per_gpu: 0"):
        next(loader.batches(0))
