"""RealESRGANDataset: equal samples for any number of workers and after a resume; the pool; validation images."""

from __future__ import annotations

import itertools
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safmn.data import PatchStore, RealESRGANDataset, SampleKey, TrainingLoader, build_dataset, sample_rng
from safmn.degradations.pool import PooledKey, pooled
from safmn.errors import DataError, OptionError
from safmn.imaging import image_size, list_images, read_rgb, write_image
from safmn.prepare.store import main as prepare_store
from safmn.registry import DATASET_REGISTRY, find

Batches = list[dict[str, Any]]


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    degradation = {"gt_usm": True} | changes.pop("degradation", {})
    return {
        "name": "photos",
        "type": "RealESRGANDataset",
        "dataroot_gt": str(folder),
        "io_backend": {"type": "disk"},
        "phase": "train",
        "scale": 4,
        "gt_size": 64,
        "use_hflip": True,
        "use_rot": False,
        "batch_size_per_gpu": 3,
        "degradation": degradation,
        **changes,
    }


@pytest.fixture
def folder(photos_dir: Path) -> Path:
    return photos_dir / "val"


def take(dataset: RealESRGANDataset, count: int, *, start: int = 0, workers: int = 0, accumulate: int = 1) -> Batches:
    """Return the micro-batches of ``count`` iterations from a loader that starts at iteration ``start``."""
    loader = TrainingLoader(
        dataset, batch_size=3, seed=5, num_workers=workers, accumulate=accumulate, enlarge_ratio=accumulate
    )
    try:
        batches = itertools.islice(loader.batches(start), count)
        return [micro for iteration in batches for micro in iteration]
    finally:
        loader.close()


def assert_same(ones: Batches, others: Batches) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one["keys"] == other["keys"]
        assert one["gt_path"] == other["gt_path"]
        for name in ("lq", "gt", "gt_usm"):
            assert torch.equal(one[name], other[name])


def test_option_files_get_our_data_set() -> None:
    assert find(DATASET_REGISTRY, "RealESRGANDataset") is RealESRGANDataset


def test_samples_are_matching_pairs(folder: Path) -> None:
    batch = take(RealESRGANDataset(section(folder)), 1)[0]
    assert batch["lq"].shape == (3, 3, 16, 16)
    assert batch["gt"].shape == batch["gt_usm"].shape == (3, 3, 64, 64)
    assert batch["lq"].dtype == torch.float32
    assert not torch.equal(batch["gt"], batch["gt_usm"])
    shrunk = torch.nn.functional.avg_pool2d(batch["gt"], 4)
    for lq, gt in zip(batch["lq"], shrunk, strict=True):
        assert np.corrcoef(lq.flatten(), gt.flatten())[0, 1] > 0.5


def test_gt_usm_is_only_returned_on_request(folder: Path) -> None:
    assert "gt_usm" not in take(RealESRGANDataset(section(folder, degradation={"gt_usm": False})), 1)[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("mode", "worker_counts"), [("per_sample", (1, 4)), ("batch_pool", (2,))])
def test_workers_and_resume_change_nothing(mode: str, worker_counts: tuple[int, ...], folder: Path) -> None:
    dataset = RealESRGANDataset(section(folder, degradation={"mode": mode, "queue_size": 6}))
    straight = take(dataset, 7)  # more than an epoch of 5, and the pool is full
    for workers in worker_counts:
        assert_same(straight, take(dataset, 7, workers=workers))
    assert_same(straight[4:], take(dataset, 3, start=4))


def test_a_sample_depends_only_on_its_key(folder: Path) -> None:
    dataset = RealESRGANDataset(section(folder))
    batch = take(dataset, 1)[0]
    key = batch["keys"][1]
    alone = dataset.sample(key.index, sample_rng(5, key))
    assert torch.equal(alone["lq"], batch["lq"][1])
    other = dataset.sample(key.index, sample_rng(5, SampleKey(1, key.index)))
    assert not torch.equal(other["lq"], batch["lq"][1])


def batches_of_keys(count: int, size: int) -> list[list[SampleKey]]:
    return [[SampleKey(number // 10, number % 10 * size + place) for place in range(size)] for number in range(count)]


def test_the_pool_exchanges_keys_like_basicsrs_queue() -> None:
    """The pool is filled first. Then every key leaves at most once, and batches keep their size and are mixed."""
    size, length, count = 12, 3, 200
    batches = batches_of_keys(count, length)
    given_out = list(pooled(iter(batches), size=size, seed=1))
    assert [[key[:2] for key in batch] for batch in given_out[: size // length]] == batches[: size // length]
    assert all(len(batch) == length for batch in given_out)
    later = [key for batch in given_out[size // length :] for key in batch]
    assert len(set(later)) == len(later)
    came = {key[:2]: number for number, batch in enumerate(batches) for key in batch}
    waits = [number - came[key[:2]] for number, batch in enumerate(given_out) for key in batch if number >= 50]
    assert min(waits) >= 1
    assert np.mean(waits) == pytest.approx(size / length, rel=0.15)  # each key leaves with probability length / size
    mixed = [len({(key.batch_epoch, key.batch_index) for key in batch}) for batch in given_out[50:]]
    assert np.mean(mixed) > 2


def test_the_pool_resumes_at_any_batch() -> None:
    batches = batches_of_keys(60, 2)
    straight = list(pooled(iter(batches), size=8, seed=3))
    assert list(pooled(iter(batches), size=8, seed=3, skip=41)) == straight[41:]
    assert list(pooled(iter(batches), size=8, seed=4))[4:] != straight[4:]


def test_a_pooled_sample_equals_the_sample_of_its_original_batch(folder: Path) -> None:
    """It is made when it leaves the pool, with the draws of the batch with which it was added."""
    dataset = RealESRGANDataset(section(folder, degradation={"mode": "batch_pool", "queue_size": 6}))
    keys = [SampleKey(0, 4), SampleKey(0, 2)]
    went_in = dataset.batch(keys, seed=9)
    came_out = dataset.batch([PooledKey(1, 3, 1, 3), PooledKey(0, 2, 0, 4)], seed=9)
    assert torch.equal(came_out["lq"][1], went_in["lq"][1])


def test_accumulated_batches_pass_through_the_pool(folder: Path) -> None:
    dataset = RealESRGANDataset(section(folder, degradation={"mode": "batch_pool", "queue_size": 3}))
    straight = take(dataset, 3, accumulate=2)
    assert_same(straight[4:], take(dataset, 1, start=2, accumulate=2))


def test_meta_info_lists_the_images(folder: Path, tmp_path: Path) -> None:
    names = [path.name for path in list_images(folder)][3:5]
    meta_info = tmp_path / "meta.txt"
    meta_info.write_text("".join(f"{name} (768,768,3)\n" for name in names))
    dataset = RealESRGANDataset(section(folder, meta_info=str(meta_info)))
    assert dataset.paths == [str(folder / name) for name in names]
    meta_info.write_text("missing.png\n")
    with pytest.raises(DataError, match=r"missing\.png"):
        RealESRGANDataset(section(folder, meta_info=str(meta_info)))


def test_an_lmdb_gives_the_same_samples(folder: Path, tmp_path: Path) -> None:
    import lmdb

    paths = list_images(folder)[:3]
    base = tmp_path / "photos.lmdb"
    with lmdb.open(str(base), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for path in paths:
            transaction.put(path.stem.encode(), path.read_bytes())
    (base / "meta_info.txt").write_text("".join(f"{path.name} (768,768,3) 1\n" for path in paths))
    from_disk = RealESRGANDataset(section(folder))
    from_lmdb = RealESRGANDataset(section(base, io_backend={"type": "lmdb"}))
    assert len(from_lmdb) == 3
    for index in range(3):
        one, other = (dataset.sample(index, sample_rng(0, SampleKey(0, 0))) for dataset in (from_disk, from_lmdb))
        assert torch.equal(one["lq"], other["lq"])


def test_a_patch_store_gives_the_same_samples(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "photos.store"
    assert prepare_store(["--gt-only", "--hr", str(folder), "-o", str(file), "--jobs", "1"]) == 0
    assert prepare_store(["--verify", str(file)]) == 0
    pixels = sum(path_size[0] * path_size[1] * 3 for path_size in map(image_size, list_images(folder)))
    assert pixels <= file.stat().st_size < 1.001 * pixels  # contains only the GT
    from_disk = RealESRGANDataset(section(folder, use_rot=True))
    from_store = RealESRGANDataset(section(file, use_rot=True, io_backend={"type": "store"}))
    ones, others = take(from_disk, 4), take(from_store, 4)
    for one, other in zip(ones, others, strict=True):
        assert one["keys"] == other["keys"]
        assert [Path(path).name for path in one["gt_path"]] == list(other["gt_path"])
        assert all(torch.equal(one[name], other[name]) for name in ("lq", "gt", "gt_usm"))
    whole = [
        RealESRGANDataset(section(place, phase="val", io_backend=backend))
        for place, backend in ((folder, {"type": "disk"}), (file, {"type": "store"}))
    ]
    assert torch.equal(whole[0][1]["lq"], whole[1][1]["lq"])
    assert torch.equal(whole[0][1]["gt"], whole[1][1]["gt"])
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)
    RealESRGANDataset(section(file, io_backend={"type": "store"}, meta_info="names.txt"))
    assert re.search(r"meta_info has no effect.*store", caplog.text)


def test_stores_of_the_wrong_kind_or_out_of_date_are_rejected(folder: Path, tmp_path: Path) -> None:
    hr = tmp_path / "hr"
    hr.mkdir()
    write_image(hr / "a.png", read_rgb(list_images(folder)[0])[:401, :402])
    alone, pairs = tmp_path / "alone.store", tmp_path / "pairs.store"
    assert prepare_store(["--gt-only", "--hr", str(hr), "-o", str(alone)]) == 0
    assert prepare_store(["--scale", "4", "--hr", str(hr), "-o", str(pairs)]) == 0
    with pytest.raises(DataError, match="holds pairs of images"):
        RealESRGANDataset(section(pairs, io_backend={"type": "store"}))
    with pytest.raises(OptionError, match="GT images only"):
        PatchStore({"type": "PatchStore", "dataroot": str(alone), "scale": 4, "gt_size": 64})
    (hr / "b.png").write_bytes((hr / "a.png").read_bytes())
    with pytest.raises(DataError, match="out of date"):
        RealESRGANDataset(section(alone, io_backend={"type": "store"}))
    item = RealESRGANDataset(section(alone, io_backend={"type": "store", "check_source": "never"}, phase="val"))[0]
    assert item["gt"].shape == (3, 400, 400)
    for wrong in (["--gt-only", "--scale", "4"], ["--gt-only", "--lr", str(hr)], []):
        with pytest.raises(SystemExit):
            prepare_store(["--hr", str(hr), "-o", str(tmp_path / "c.store"), *wrong])


def test_validation_images_are_whole_and_always_equal(folder: Path) -> None:
    options = section(folder, phase="val", degradation={"gt_size": 180})
    item, again = RealESRGANDataset(options)[2], RealESRGANDataset(options)[2]
    image = read_rgb(list_images(folder)[2])
    height, width = image.shape[0] // 4 * 4, image.shape[1] // 4 * 4
    assert item["gt"].shape == (3, height, width)
    assert item["lq"].shape == (3, height // 4, width // 4)
    assert torch.equal(item["gt"], torch.from_numpy(image[:height, :width].transpose(2, 0, 1).copy()) / 255)
    assert torch.equal(item["lq"], again["lq"])
    assert item["lq_path"] == item["gt_path"] == str(list_images(folder)[2])


def test_queue_size_without_the_pool_is_logged_as_without_effect(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)  # training in an earlier test turns it off
    with caplog.at_level("INFO", logger="safmn"):
        RealESRGANDataset(section(folder, degradation={"queue_size": 100}))
    assert "queue_size has no effect" in caplog.text


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="kernel_prob"):
        build_dataset(section(folder, kernel_prob=[0.5, 0.6]), phase="train", scale=4)
    with pytest.raises(OptionError, match="'degradation' is missing"):
        RealESRGANDataset({key: value for key, value in section(folder).items() if key != "degradation"})
    with pytest.raises(OptionError, match="dataroot_gt"):
        RealESRGANDataset({key: value for key, value in section(folder).items() if key != "dataroot_gt"})
    with pytest.raises(DataError, match=r"photos.*nowhere"):
        RealESRGANDataset(section(tmp_path / "nowhere"))
