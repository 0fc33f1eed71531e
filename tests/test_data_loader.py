"""The order of samples, their random draws and the loader's batches depend only on (seed, epoch, index)."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import re
import signal
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from data_helpers import make_folders, make_lmdb, make_store, paired_section
from hypothesis import given
from hypothesis import strategies as st

from safmn.data import KeyedDataset, SampleKey, TrainingLoader, build_dataset, draw_patch, sample_rng
from safmn.data.batch_draws import first_draws
from safmn.data.workers import explain_death, one_opencv_thread
from safmn.errors import DataError
from safmn.imports import import_named
from safmn.runtime.agreement import describe

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


class Numbers:
    """A data set whose samples are their index and two random numbers."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"index": index, "lq": torch.from_numpy(rng.random(2))}


def take(loader: TrainingLoader, count: int, start: int = 0) -> list[list[dict[str, Any]]]:
    """Return ``count`` iterations after iteration ``start``, and close the loader."""
    try:
        return list(itertools.islice(loader.batches(start), count))
    finally:
        loader.close()


def keys_of(loader: TrainingLoader, count: int, start: int = 0) -> list[SampleKey]:
    """Return the keys of ``count`` iterations of this rank in one list."""
    return [key for keys in itertools.islice(loader.keys(start), count * loader.accumulate) for key in keys]


settings = st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


@given(settings, st.integers(0, 2**40))
def test_an_epoch_visits_every_enlarged_index_at_most_once(setting: tuple[int, ...], seed: int) -> None:
    length, batch, world, accumulate, ratio = setting
    if length * ratio < batch * world * accumulate:
        return
    options = {"batch_size": batch, "seed": seed, "world_size": world, "accumulate": accumulate, "enlarge_ratio": ratio}
    loaders = [TrainingLoader(Numbers(length), rank=rank, **options) for rank in range(world)]
    per_epoch = loaders[0].iterations_per_epoch
    keys = [key for loader in loaders for key in keys_of(loader, per_epoch)]
    assert len(set(keys)) == len(keys) == per_epoch * batch * world * accumulate
    assert {key.epoch for key in keys} == {0}
    assert {key.index for key in keys} <= set(range(length * ratio))
    assert length * ratio - len(keys) < batch * world * accumulate
    assert {key.epoch for key in keys_of(loaders[0], per_epoch, per_epoch)} == {1}


@given(st.integers(0, 30))
def test_any_start_continues_the_same_order(start: int) -> None:
    loader = TrainingLoader(Numbers(11), batch_size=2, seed=5, accumulate=2)
    assert loader.iterations_per_epoch == 2
    assert keys_of(loader, 5, start) == keys_of(loader, start + 5)[start * 4 :]


def test_ranks_and_micro_steps_share_the_samples_of_the_same_iterations() -> None:
    alone = TrainingLoader(Numbers(50), batch_size=12, seed=1)
    ranks = [TrainingLoader(Numbers(50), batch_size=2, seed=1, rank=r, world_size=3, accumulate=2) for r in range(3)]
    micro = [itertools.islice(rank.keys(0), 20) for rank in ranks]
    together = [key for per_rank in zip(*micro, strict=True) for keys in per_rank for key in keys]
    assert together == keys_of(alone, 10)


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = [
        [key.index for key in keys_of(TrainingLoader(Numbers(64), batch_size=64, seed=seed), 1, epoch)]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert orders[0] != sorted(orders[0])


def test_epoch_of_an_iteration() -> None:
    loader = TrainingLoader(Numbers(10), batch_size=4, seed=0)
    assert [loader.epoch_of(iteration) for iteration in (0, 1, 2, 3, 4, 5)] == [0, 0, 0, 1, 1, 2]
    first = [next(loader.keys(start))[0].epoch for start in range(4)]
    assert first == [loader.epoch_of(start + 1) for start in range(4)]


def test_a_set_smaller_than_one_batch_is_refused() -> None:
    with pytest.raises(DataError, match=r"5 images.*at least 4"):
        TrainingLoader(Numbers(5), batch_size=16, seed=0)
    TrainingLoader(Numbers(5), batch_size=16, seed=0, enlarge_ratio=4)


def test_an_image_gets_different_draws_each_time_it_appears() -> None:
    keyed = KeyedDataset(Numbers(4), seed=0)
    draws = {tuple(keyed[SampleKey(epoch, index)]["lq"].tolist()) for epoch in range(3) for index in (1, 5, 9)}
    assert len(draws) == 9
    assert {keyed[SampleKey(0, index)]["index"] for index in (1, 5, 9)} == {1}


@given(st.integers(0, 2**20), st.integers(1, 80), st.integers(1, 80), st.data())
def test_patches_lie_inside(seed: int, height: int, width: int, data: st.DataObject) -> None:
    side = data.draw(st.integers(1, min(height, width)))
    patch = draw_patch(sample_rng(seed, SampleKey(0, 0)), height, width, side, False, False)
    assert 0 <= patch.top <= height - side
    assert 0 <= patch.left <= width - side
    assert patch[2:] == (False, False, False)


def test_patches_are_uniform() -> None:
    patches = [draw_patch(sample_rng(0, SampleKey(0, i)), 4, 3, 2, True, True) for i in range(4000)]
    counts = np.unique([[p.top * 2 + p.left, p.hflip + 2 * p.vflip + 4 * p.rot90] for p in patches], axis=0)
    assert len(counts) == 6 * 8
    means = np.mean(patches, axis=0)
    assert np.allclose(means, [1, 0.5, 0.5, 0.5, 0.5], atol=0.06)
    corners = np.corrcoef(np.array(patches, float).T) - np.eye(5)
    assert np.abs(corners).max() < 0.07


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Sections for the same images in folders, in lmdbs and in a patch store, and for BasicSR's class on folders."""
    root = tmp_path_factory.mktemp("same")
    hr, lr = make_folders(root)
    lmdbs = (make_lmdb(hr, root / "hr.lmdb"), make_lmdb(lr, root / "lr.lmdb", "x2"))
    store = make_store(hr, lr, root / "images.store")
    disk = paired_section(hr, lr)
    return {
        "disk": disk,
        "lmdb": {**disk, "dataroot_gt": str(lmdbs[0]), "dataroot_lq": str(lmdbs[1]), "io_backend": {"type": "lmdb"}},
        "store": {**disk, "type": "PatchStore", "dataroot": str(store)},
        "basicsr": {**disk, "scale": 2, "phase": "train"},
    }


def load(sections: dict[str, dict[str, Any]], kind: str, workers: int) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """Return LQ, GT and keys of seven iterations of two micro-batches, across the end of an epoch."""
    if kind == "basicsr":
        dataset = DATASET_REGISTRY.get("PairedImageDataset")(dict(sections[kind], io_backend={"type": "disk"}))
        dataset.paths.sort(key=lambda paths: paths["gt_path"])
    else:
        dataset = build_dataset(sections[kind], phase="train", scale=2)
    loader = TrainingLoader(dataset, batch_size=3, seed=7, accumulate=2, enlarge_ratio=5, num_workers=workers)
    batches = [batch for micro in take(loader, 7, start=1) for batch in micro]
    assert batches[0]["lq"].shape == (3, 3, 16, 16)
    assert batches[0]["gt"].shape == (3, 3, 32, 32)
    assert batches[0]["gt"].dtype == torch.float32
    assert [len(batch["lq_path"]) for batch in batches] == [3] * 14
    return (
        torch.cat([batch["lq"] for batch in batches]),
        torch.cat([batch["gt"] for batch in batches]),
        [batch["keys"] for batch in batches],
    )


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("kind", ["disk", "lmdb", "store"])
def test_folders_lmdbs_and_stores_give_the_same_batches(
    sections: dict[str, dict[str, Any]], kind: str, workers: int
) -> None:
    expected, got = load(sections, "disk", 0), load(sections, kind, workers)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert got[2] == expected[2]


def test_basicsr_data_sets_give_the_same_batches_for_any_worker_count(sections: dict[str, dict[str, Any]]) -> None:
    none, one, four = (load(sections, "basicsr", workers) for workers in (0, 1, 4))
    assert torch.equal(none[0], one[0])
    assert torch.equal(none[0], four[0])
    assert torch.equal(none[1], four[1])
    assert len(torch.unique(none[0].flatten(1), dim=0)) > 30  # of 42 samples


@pytest.mark.parametrize("kind", ["disk", "basicsr"])
@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generators_alone(
    sections: dict[str, dict[str, Any]], kind: str, workers: int
) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    load(sections, kind, workers)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_an_lmdb_may_be_read_before_the_workers_start(sections: dict[str, dict[str, Any]]) -> None:
    dataset = build_dataset(sections["lmdb"], phase="train", scale=2)
    expected = dataset.sample(0, sample_rng(0, SampleKey(0, 0)))["lq"]
    other = build_dataset(sections["lmdb"], phase="val", scale=2)  # a second data set on the same files
    assert len(other[0]["lq"]) == 3
    loader = TrainingLoader(dataset, batch_size=1, seed=0, num_workers=1, enlarge_ratio=4)
    batches = {batch["keys"][0]: batch["lq"][0] for micro in take(loader, 20) for batch in micro}
    assert torch.equal(batches[SampleKey(0, 0)], expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(tmp_path: Path, workers: int) -> None:
    hr, lr = make_folders(tmp_path)
    (lr / "ax2.png").write_bytes((lr / "ax2.png").read_bytes()[:100])
    dataset = build_dataset(paired_section(hr, lr), phase="train", scale=2)
    loader = TrainingLoader(dataset, batch_size=1, seed=0, num_workers=workers)
    with pytest.raises(DataError, match=r"ax2\.png") as raised:
        take(loader, 5)
    assert "Traceback" not in str(raised.value)
    assert "\n" not in str(raised.value)


class Broken(Numbers):
    """A data set with a bug."""

    def __init__(self, error: Exception) -> None:
        super().__init__(4)
        self.error = error

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        raise self.error


class Threads(Numbers):
    """A data set whose samples hold the numbers of threads that OpenCV and torch may use."""

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        cv2.cvtColor(np.zeros((1000, 1000, 3), np.uint8), cv2.COLOR_BGR2RGB)
        return {"threads": (cv2.getNumThreads(), torch.get_num_threads())}


def test_workers_use_one_thread_each_even_if_this_process_has_a_thread_pool() -> None:
    before = cv2.getNumThreads()
    try:
        for _ in range(5):
            cv2.setNumThreads(3)
            Threads(1).sample(0, np.random.default_rng(0))  # starts OpenCV's pool
            (batch,), *_ = take(TrainingLoader(Threads(8), batch_size=2, seed=0, num_workers=2), 2)
            assert [threads.tolist() for threads in batch["threads"]] == [[1, 1], [1, 1]]
            assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), EOFError("a bug"), RuntimeError("a bug")])
def test_a_bug_in_a_data_set_keeps_its_traceback(error: Exception, workers: int) -> None:
    with pytest.raises(DataError if workers else type(error), match="a bug") as raised:
        take(TrainingLoader(Broken(error), batch_size=1, seed=0, num_workers=workers), 1)
    text = "".join(traceback.format_exception(type(raised.value), raised.value, raised.value.__traceback__))
    assert re.search(r"in sample(\n    |: )raise self\.error", text)


class Ended(Numbers):
    """A data set that ends its process by a signal (``how`` is negative) or with an exit status."""

    def __init__(self, how: int) -> None:
        super().__init__(4)
        self.how = how

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        if self.how >= 0:
            os._exit(self.how)
        os.kill(os.getpid(), -self.how)
        time.sleep(5)
        return {}


@pytest.mark.parametrize(
    ("how", "said", "unsaid"),
    [
        (-signal.SIGKILL, r"killed \(SIGKILL\).*memory.*num_worker_per_gpu", "crashed"),
        (-signal.SIGUSR2, "SIGUSR2", "memory"),
        (3, "exit status 3", "memory"),
    ],
)
def test_the_message_says_how_a_worker_ended(how: int, said: str, unsaid: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        take(TrainingLoader(Ended(how), batch_size=1, seed=0, num_workers=1), 1)
    assert "--auto_resume" in str(caught.value)
    assert unsaid not in str(caught.value)


@pytest.mark.parametrize(
    ("torch_says", "said"),
    [
        ("is killed by signal: Segmentation fault. ", r"crashed \(SIGSEGV\)"),
        (
            "is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.",
            "/dev/shm",
        ),
        ("exited unexpectedly with exit code 3221225477. Details", r"crashed \(Windows' status 0xc0000005\) in a lib"),
        ("exited unexpectedly with exit code 9. Details are lost due to multiprocessing.", "exit status 9"),
        (
            "is killed by signal: Something new. ",
            r"died \(DataLoader worker \(pid 12\) .*: Something new",
        ),
    ],
)
def test_the_messages_of_torch_about_a_dead_worker_are_explained(torch_says: str, said: str) -> None:
    with pytest.raises(DataError, match=said), explain_death():
        raise RuntimeError(f"DataLoader worker (pid 12) {torch_says}")


class Named(Broken):
    def image_names(self) -> list[str]:
        return ["first", "second", "third", "fourth"]


def test_an_error_in_a_data_set_names_the_image() -> None:
    for workers in (0, 1):
        with pytest.raises(DataError if workers else ZeroDivisionError, match="a bug") as caught:
            take(TrainingLoader(Named(ZeroDivisionError("a bug")), batch_size=1, seed=0, num_workers=workers), 1)
        text = str(caught.value) if workers else describe(caught.value)
        assert "ZeroDivisionError: a bug" in text
        assert len(re.findall(r"while loading sample \d of Named, (?:first|second|third|fourth)", text)) == 1


@pytest.mark.slow
def test_a_spawned_worker_imports_the_modules_that_the_option_file_names(tmp_path: Path) -> None:
    """The data set is defined in a file outside sys.path, which imports a second file beside it."""
    (tmp_path / "shift_of_the_test.py").write_text("SHIFT = 5.0\n")
    (tmp_path / "data_of_the_test.py").write_text(
        "import multiprocessing, torch, shift_of_the_test\n"
        "from safmn.registry import DATASET_REGISTRY\n"
        "@DATASET_REGISTRY.register()\n"
        "class SpawnedOfTheTest:\n"
        "    def __init__(self, opt): pass\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, index):\n"
        "        assert multiprocessing.parent_process() is not None\n"
        "        return {'lq': torch.full((2,), shift_of_the_test.SHIFT + index)}\n"
    )
    import_named(str(tmp_path / "data_of_the_test.py"))
    dataset = build_dataset({"type": "SpawnedOfTheTest"}, phase="train", scale=2)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        batches = take(TrainingLoader(dataset, batch_size=4, seed=0, num_workers=1), 1)
    finally:
        multiprocessing.set_start_method(before, force=True)
        deadline = time.monotonic() + 60
        while multiprocessing.active_children() and time.monotonic() < deadline:  # other tests count the children
            time.sleep(0.05)
    assert sorted(batches[0][0]["lq"][:, 0].tolist()) == [5, 6, 7, 8]


def test_a_connection_lost_to_a_worker_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = TrainingLoader(Numbers(8), batch_size=1, seed=0, num_workers=1)
    batches = loader.batches(0)
    next(batches)

    def lost(_: object) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._get_data", lost)
    with pytest.raises(DataError, match=r"a loader worker .*Connection reset"):
        next(batches)


def test_errors_other_than_the_death_of_a_worker_stay_unchanged() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), explain_death():
        raise RuntimeError("CUDA out of memory")


def test_close_ends_workers_and_threads() -> None:
    for workers in (0, 2):
        loader = TrainingLoader(Numbers(8), batch_size=2, seed=0, num_workers=workers)
        others = set(threading.enumerate())
        batches = loader.batches(0)
        next(batches)
        loading = set(threading.enumerate()) - others
        assert len(multiprocessing.active_children()) == workers
        assert workers or loading  # without workers, a thread loads ahead
        loader.close()
        deadline = time.monotonic() + 3
        while multiprocessing.active_children() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert multiprocessing.active_children() == []
        assert workers or not any(thread.is_alive() for thread in loading)
        loader.close()
        first = next(loader.batches(0))
        assert first[0]["keys"] == next(loader.keys(0))
        loader.close()


def _train(connection: Connection) -> None:
    """Run as a main process that handles signals as training does, and load five batches for each message."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    loader = TrainingLoader(Numbers(1000), batch_size=2, seed=0, num_workers=2, prefetch_factor=1)
    batches = loader.batches(0)
    next(batches)
    while True:
        connection.send([child.pid for child in multiprocessing.active_children()])
        connection.recv()
        for _ in range(5):
            next(batches)


def test_workers_ignore_group_signals_and_die_with_a_killed_parent() -> None:
    connection, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_train, args=(theirs,))  # its workers start as usual
    with one_opencv_thread():
        process.start()
    theirs.close()
    assert process.pid is not None
    try:
        assert connection.poll(120)
        workers = connection.recv()
        assert len(workers) == 2
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.killpg(process.pid, number)
            time.sleep(0.1)
            connection.send("go on")
            assert connection.poll(120)
            assert connection.recv() == workers
    finally:
        process.kill()
        process.join()
    deadline = time.monotonic() + 3  # torch's own watchdog checks only every five seconds
    while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in workers if _is_running(pid)] == []


def _is_running(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


NUMBERS = st.integers(0, 2**32 - 1) | st.integers(0, 2**40)


@given(rows=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_the_draws_of_a_batch_equal_those_of_the_samples_generators(rows: list[tuple[int, int, int]]) -> None:
    expected = [sample_rng(seed, SampleKey(epoch, index)).random(3) for seed, epoch, index in rows]
    assert np.array_equal(first_draws(rows), expected)


def test_an_epoch_with_too_many_samples_is_refused() -> None:
    with pytest.raises(DataError, match=r"11,000,000,000,000 samples.*dataset_enlarge_ratio.*1e\+12"):
        TrainingLoader(Numbers(11), batch_size=2, seed=0, enlarge_ratio=1e12)
