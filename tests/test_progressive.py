"""Progressive training: patch and batch sizes change over the iterations, and a resumed run stays exact."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from data_helpers import make_folders, make_lmdb, make_store, paired_section

from safmn.data import SampleKey, build_dataset
from safmn.data.progressive import ProgressiveLoader
from safmn.data.stages import Stage, cut_patches, heaviest, patch_sizes, stages_of
from safmn.doctor.run import Notes, try_run
from safmn.errors import DataError, OptionError
from safmn.options import load_options
from safmn.train import main as train
from safmn.weights import load_state_dict

SECTION = {
    "batch_size_per_gpu": 3, "gt_size": 32, "iters": [4, 3, 5], "gt_sizes": [16, 24, 32], "mini_batch_sizes": [3, 2, 1]
}  # fmt: skip
STAGES = [Stage(1, 4, 16, 3), Stage(5, 7, 24, 2), Stage(8, None, 32, 1)]


def test_the_lists_give_the_stages() -> None:
    assert stages_of(SECTION) == STAGES
    assert patch_sizes(SECTION) == [16, 24, 32]
    assert heaviest(SECTION) == STAGES[1]  # 2 * 24^2 > 32^2, 3 * 16^2
    assert stages_of({"batch_size_per_gpu": 3, "gt_size": 32}) == [Stage(1, None, None, 3)]


def test_the_plain_keys_are_upper_limits() -> None:
    """As in Restormer, whose loader gives patches of gt_size in batches of batch_size_per_gpu."""
    limited = stages_of({**SECTION, "batch_size_per_gpu": 2, "gt_size": 20})
    assert [(stage.gt_size, stage.batch_size) for stage in limited] == [(16, 2), (20, 2), (20, 1)]
    sizes_alone = {"batch_size_per_gpu": 2, "gt_size": 32, "iters": [4, 4], "gt_sizes": [16, 32]}
    assert [stage.batch_size for stage in stages_of(sizes_alone)] == [2, 2]
    batches_alone = {"batch_size_per_gpu": 4, "gt_size": 32, "iters": [4, 4], "mini_batch_sizes": [4, 1]}
    assert [(stage.gt_size, stage.batch_size) for stage in stages_of(batches_alone)] == [(None, 4), (None, 1)]


class Foreign(torch.utils.data.Dataset[Any]):
    """A data set of a user: it makes patches of one size, with the global generator."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        lq = torch.rand(3, 16, 16)
        return {"lq": lq, "gt": lq.repeat_interleave(2, 1).repeat_interleave(2, 2), "lq_path": str(index)}


def _dataset(kind: str, folder: Path) -> Any:
    hr, lr = make_folders(folder)
    flips = {"use_hflip": True, "use_rot": True, "gt_size": 32}
    folders = {**paired_section(hr, lr), **flips}
    if kind == "foreign":
        return Foreign()
    if kind == "folders":
        return build_dataset(folders, phase="train", scale=2)
    if kind == "made":
        return build_dataset({**folders, "dataroot_lq": None, "filename_tmpl": "{}"}, phase="train", scale=2)
    if kind == "lmdb":
        gt, lq = make_lmdb(hr, folder / "hr.lmdb"), make_lmdb(lr, folder / "lr.lmdb", "x2")
        section = paired_section(gt, lq, filename_tmpl="{}", io_backend={"type": "lmdb"}) | flips
        return build_dataset(section, phase="train", scale=2)
    store = make_store(hr, lr, folder / "both.store")
    stored = {"name": "store", "type": "PatchStore", "dataroot": str(store)}
    if kind == "store":
        return build_dataset(stored | flips, phase="train", scale=2)
    degraded = {"name": "real", "type": "RealESRGANDataset", "dataroot_gt": str(hr), "degradation": {"crop_size": 64}}
    if kind == "degraded":
        return build_dataset(degraded | flips, phase="train", scale=2)
    parts = {"store": stored, "drawn": {"type": "DrawnImages"}}
    return build_dataset({"name": "mix", "type": "MixedDataset", "parts": parts, **flips}, phase="train", scale=2)


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _take(loader: ProgressiveLoader, start: int, count: int) -> list[list[dict[str, Any]]]:
    batches = loader.batches(start)
    taken = [next(batches) for _ in range(count)]
    loader.close()
    return taken


def _same(left: Sequence[dict[str, Any]], right: Sequence[dict[str, Any]]) -> bool:
    return all(
        torch.equal(a["lq"], b["lq"]) and torch.equal(a["gt"], b["gt"]) and a["keys"] == b["keys"]
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("kind", ["folders", "made", "lmdb", "store", "mixed", "degraded", "foreign"])
def test_every_data_set_gives_the_sizes_and_resumes_anywhere(kind: str, tmp_path: Path) -> None:
    dataset = _dataset(kind, tmp_path)
    loader = ProgressiveLoader(dataset, STAGES, seed=3, accumulate=2, enlarge_ratio=4)
    batches = _take(loader, 0, 10)
    shapes = [{(tuple(b["lq"].shape), tuple(b["gt"].shape)) for b in each} for each in batches]
    expected = [(3, 8)] * 4 + [(2, 12)] * 3 + [(1, 16)] * 3
    assert shapes == [{((n, 3, side, side), (n, 3, 2 * side, 2 * side))} for n, side in expected]
    if kind in ("folders", "lmdb", "store", "foreign"):  # each GT pixel holds the value of its LQ pixel
        for batch in (b for each in batches for b in each):
            assert torch.equal(batch["gt"], batch["lq"].repeat_interleave(2, 2).repeat_interleave(2, 3))
    keys = [key for each in batches for batch in each for key in batch["keys"]]
    assert len(set(keys)) == len(keys)  # no draw is repeated, also across stages
    for start in (2, 4, 5, 8):
        assert _same(_take(loader, start, 1)[0], batches[start])


def test_patches_of_all_places_are_drawn(tmp_path: Path) -> None:
    """The crop of a smaller stage is uniform in the image, not in a larger crop."""
    dataset = _dataset("folders", tmp_path)
    dataset.options = type(dataset.options)(**{**_fields(dataset.options), "use_hflip": False, "use_rot": False})
    loader = ProgressiveLoader(dataset, [Stage(1, None, 16, 5)], seed=0, enlarge_ratio=200)
    batches = [batch["lq"] for (batch,) in _take(loader, 0, 200)]
    corners = torch.cat(batches)[:, :, 0, 0].mul(255).round().int()  # row, column, number of the image
    tops = corners[corners[:, 2] == 2, 0].bincount(minlength=29)  # an image of 36x36
    assert len(tops) == 29
    assert float(tops[:3].float().mean()) == pytest.approx(float(tops.float().mean()), rel=0.5)


def test_workers_and_ranks_make_no_difference(tmp_path: Path) -> None:
    dataset = _dataset("folders", tmp_path)
    alone = _take(ProgressiveLoader(dataset, STAGES, seed=3, enlarge_ratio=4), 3, 2)
    with_workers = _take(ProgressiveLoader(dataset, STAGES, seed=3, enlarge_ratio=4, num_workers=1), 3, 2)
    assert all(_same(a, b) for a, b in zip(alone, with_workers, strict=True))
    double = [stage._replace(batch_size=2 * stage.batch_size) for stage in STAGES]
    together = ProgressiveLoader(dataset, double, seed=3, enlarge_ratio=8)
    ranks = [ProgressiveLoader(dataset, STAGES, seed=3, enlarge_ratio=8, rank=rank, world_size=2) for rank in range(2)]
    for iteration in (0, 5):
        ((whole,),) = _take(together, iteration, 1)
        halves = [_take(rank, iteration, 1)[0][0]["keys"] for rank in ranks]
        assert whole["keys"] == halves[0] + halves[1]


def test_epochs_are_numbered_through(tmp_path: Path) -> None:
    loader = ProgressiveLoader(Foreign(), STAGES, seed=0)  # 2, 3 and 6 iterations per epoch
    assert [loader.epoch_of(iteration) for iteration in range(1, 15)] == [0, 0, 1, 1, *[2] * 3, *[3] * 6, 4]
    assert {key.epoch for key in next(loader.keys(5))} == {2}
    assert (loader.iterations_per_epoch, loader.global_batch) == ("2, 3, 6", "3, 2, 1")


def test_patches_that_cannot_be_cut_are_explained() -> None:
    batch = {"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 16, 16)}
    keys = [SampleKey(0, 0)]
    for size in (24, 7):
        with pytest.raises(DataError, match=rf"gt_sizes: {size} cannot be cut from the GT patches of 16x16"):
            cut_patches(batch, keys, 0, size)
    assert cut_patches(batch, keys, 0, 16)["gt"] is batch["gt"]


def test_a_pool_of_samples_keeps_its_size(tmp_path: Path) -> None:
    dataset = _dataset("degraded", tmp_path)
    dataset.degradation = type(dataset.degradation)(**{**_fields(dataset.degradation), "mode": "batch_pool"})
    with pytest.raises(OptionError, match=r"datasets.train.iters: with degradation: \{mode: batch_pool\}"):
        ProgressiveLoader(dataset, STAGES, seed=0)


def _options(folder: Path, **keys: Any) -> dict[str, Any]:
    result = tiny_run.options(folder, total_iter=8, fft_opt=None, warmup_iter=-1)
    stages = {"iters": [3, 3, 2], "gt_sizes": [16, 24, 32], "mini_batch_sizes": [2, 2, 1]}
    result["datasets"]["train"] |= stages | keys
    return result


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"gt_sizes": [16, 32]}, r"datasets\.train\.gt_sizes: has 2 items, iters 3"),
        ({"mini_batch_sizes": [2]}, r"mini_batch_sizes: has 1 items, iters 3"),
        ({"iters": None}, r"gt_sizes: needs `iters`"),
        ({"gt_sizes": [16, 25, 32]}, r"gt_sizes\[1\]: 25 is not a multiple of the scale, 2"),
        ({"iters": [3, 0, 2]}, r"iters: expected a list, each a whole number, at least 1"),
    ],
)
def test_mistakes_in_the_lists_are_found(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tiny_run.write_options(tmp_path, _options(tmp_path, **keys))
    with pytest.raises(OptionError, match=words):
        load_options(path, mode="train")


def test_a_cuda_graph_needs_one_size(tmp_path: Path) -> None:
    data = _options(tmp_path)
    data["train"]["cuda_graph"] = True
    with pytest.raises(OptionError, match=r"train\.cuda_graph: records batches of one size"):
        load_options(tiny_run.write_options(tmp_path, data), mode="train")


def test_what_is_not_reached_or_limited_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = _options(tmp_path, gt_sizes=[16, 24, 40], mini_batch_sizes=[8, 2, 1])
    data["train"]["total_iter"] = 6
    load_options(tiny_run.write_options(tmp_path, data), mode="train")
    assert "gt_sizes: go up to 40, but gt_size, the upper limit, is 32" in caplog.text
    assert "mini_batch_sizes: go up to 8, but batch_size_per_gpu, the upper limit, is 2" in caplog.text
    assert "iters: total_iter, 6, ends in stage 2 of 3" in caplog.text


def test_a_run_that_stops_in_a_stage_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_run.make_images(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    results = []
    for folder, ends in (("a", [8]), ("b", [4, 8])):  # 4 is in the second stage
        monkeypatch.chdir(tmp_path / folder)
        for end in ends:
            data = _options(tmp_path)
            data["train"]["total_iter"] = end
            data["path"]["experiments_root"] = "experiments"
            tiny_run.write_options(Path(), data)
            assert train(["-opt", "options.yml", "--auto_resume"]) == 0
        weights = load_state_dict(Path("experiments/tiny/models/net_g_8.pth"))
        log = Path("experiments/tiny/train_tiny.log").read_text(encoding="utf-8")
        results.append((weights, re.findall(r"from iteration .*", log), log))
    (whole, stages, log), (resumed, again, _) = results
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    lines = [f"from iteration {first}: GT patches of {size} pixels, batches of {n}" for first, size, n in
             ((1, 16, 2), (4, 24, 2), (7, 32, 1))]  # fmt: skip
    assert stages == lines
    assert again == [lines[0], lines[1], lines[1].replace("4", "5", 1), lines[2]]
    assert "one batch of each of 3 stages trained on a copy" in log
    logging.getLogger("safmn").propagate = True


def test_the_doctor_tries_the_largest_stage(tmp_path: Path) -> None:
    tiny_run.make_images(tmp_path)
    path = tiny_run.write_options(tmp_path, _options(tmp_path))
    findings = {found.subject: found.text for found in try_run(str(path), [], Notes())}
    assert "steps, validation, saving and resuming work" in findings["trial run"]
    assert "for a batch of 2 (GT patches of 24 pixels, batches of 2)" in findings["memory"]
    assert "in the largest stage" in findings["time"]
