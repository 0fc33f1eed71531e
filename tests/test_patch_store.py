"""Patch stores: complete builds, checks for damage and changed sources, and equal crops on CPU and GPU."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import sys
import threading
import time
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from data_helpers import SIZES, make_folders, make_store, paired_section
from tqdm import tqdm

from safmn.data import PatchStore, SampleKey, TrainingLoader, build_dataset, patch_store
from safmn.data.patch_store import gather
from safmn.data.store_format import Source, StoreFile, StoreIndex, digest_of, finish_file, read_index
from safmn.data.workers import one_opencv_thread
from safmn.errors import DataError, OptionError
from safmn.imaging import imresize, list_images, mod_crop, read_rgb, write_image
from safmn.kernels import gpu as gpu_kernels
from safmn.prepare import store as builder
from safmn.prepare.store import build_store, main

KEYS = [SampleKey(epoch, index) for epoch in (0, 3) for index in range(20)]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return make_folders(tmp_path)


@pytest.fixture
def store(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    return make_store(*folders, tmp_path / "images.store")


def open_store(path: Path, **more: Any) -> PatchStore:
    section = {"name": "set", "type": "PatchStore", "dataroot": str(path), "gt_size": 32, "use_hflip": True}
    dataset = build_dataset({**section, "use_rot": True, **more}, phase="train", scale=2)
    assert isinstance(dataset, PatchStore)
    return dataset


def arguments(folders: tuple[Path, Path], output: Path, *more: str) -> list[str]:
    hr, lr = map(str, folders)
    return ["--hr", hr, "--lr", lr, "--filename-tmpl", "{}x2", "--scale", "2", "-o", str(output), "--jobs", "2", *more]


def test_a_store_holds_the_images_of_the_folders(folders: tuple[Path, Path], store: Path) -> None:
    disk, stored = build_dataset(paired_section(*folders), phase="val", scale=2), open_store(store)
    assert len(disk) == len(stored) == len(SIZES)
    for index in range(len(disk)):
        assert torch.equal(disk[index]["gt"], stored[index]["gt"])
        assert torch.equal(disk[index]["lq"], stored[index]["lq"])
        assert Path(stored[index]["gt_path"]).name == Path(disk[index]["gt_path"]).name


def test_a_store_of_real_images_gives_the_crops_of_the_files(benchmark_dir: Path, tmp_path: Path) -> None:
    hr, lr = benchmark_dir / "Set14" / "HR", benchmark_dir / "Set14" / "LR_bicubic" / "X4"
    path = make_store(hr, lr, tmp_path / "set14.store", scale=4)
    crop = {"name": "set", "gt_size": 128, "use_hflip": True, "use_rot": True}
    stored = build_dataset({"type": "PatchStore", "dataroot": str(path), **crop}, phase="train", scale=4)
    section = {"dataroot_gt": str(hr), "dataroot_lq": str(lr), "filename_tmpl": "{}x4", "type": "PairedImageDataset"}
    disk = build_dataset({**section, **crop}, phase="train", scale=4)
    batches = [
        next(TrainingLoader(dataset, batch_size=24, enlarge_ratio=2, seed=3).batches(0))[0]
        for dataset in (disk, stored)
    ]
    assert torch.equal(batches[0]["lq"], batches[1]["lq"])
    assert torch.equal(batches[0]["gt"], batches[1]["gt"])
    assert stored.images[0].hr.digest == digest_of((hr / stored.images[0].hr.name).read_bytes())


def test_without_an_lr_folder_lr_images_are_made_by_imresize(benchmark_dir: Path, tmp_path: Path) -> None:
    hr = benchmark_dir / "Set5" / "HR"
    path = tmp_path / "made" / "set5.store"
    assert main(["--hr", str(hr), "--scale", "3", "-o", str(path)]) == 0
    stored = StoreFile(path)
    for number, image in enumerate(list_images(hr)):
        gt = mod_crop(read_rgb(image), 3)
        assert np.array_equal(stored.gt(number), gt.transpose(2, 0, 1))
        assert np.array_equal(stored.lq(number), imresize(gt, 1 / 3).transpose(2, 0, 1))
    expected = benchmark_dir / "Set5" / "LR_bicubic" / "X3"
    assert np.array_equal(stored.lq(0), read_rgb(expected / "babyx3.png").transpose(2, 0, 1))


def test_samples_equal_batches(store: Path) -> None:
    dataset = open_store(store)
    batch = dataset.batch(KEYS, seed=1)
    loader = TrainingLoader(dataset, batch_size=1, seed=1)
    assert batch["keys"] == KEYS
    for number, key in enumerate(KEYS):
        sample = loader.keyed[key]
        assert torch.equal(sample["gt"], batch["gt"][number])
        assert torch.equal(sample["lq"], batch["lq"][number])
        assert sample["gt_path"] == batch["gt_path"][number]


def assert_gathered_equals_sliced(store: Path, device: str) -> None:
    dataset = open_store(store)
    plan, sliced = dataset.plan(KEYS, 1), dataset.batch(KEYS, 1)
    pixels = torch.from_numpy(dataset.store.pixels.copy()).to(device)
    for side, addresses, name in ((32, plan.gt, "gt"), (16, plan.lq, "lq")):
        gathered = gather(pixels, torch.from_numpy(addresses).to(device), side)
        assert torch.equal(gathered.cpu(), sliced[name])


def test_one_gather_equals_slices(store: Path) -> None:
    assert_gathered_equals_sliced(store, "cpu")


def test_batches_from_the_device_equal_those_from_the_file(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the loader's code path for a store on a GPU, on the CPU."""
    from_file, on_device = open_store(store), open_store(store)
    monkeypatch.setattr(PatchStore, "on_device", property(lambda self: self is on_device))
    for workers in (0, 2):  # for a store on a device, the loader starts no workers
        loaders = [
            TrainingLoader(d, batch_size=3, seed=1, accumulate=2, enlarge_ratio=4, num_workers=workers)
            for d in (from_file, on_device)
        ]
        for expected, got, _ in zip(loaders[0].batches(1), loaders[1].batches(1), range(5), strict=False):
            for one, other in zip(expected, got, strict=True):
                assert torch.equal(one["gt"], other["gt"])
                assert torch.equal(one["lq"], other["lq"])
                assert one["keys"] == other["keys"]
                assert one["lq_path"] == other["lq_path"]
        for loader in loaders:
            loader.close()
    assert on_device._device_pixels  # its batches were gathered from the copy
    assert not from_file._device_pixels


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_a_gpu_equal_those_on_the_cpu(store: Path) -> None:
    assert_gathered_equals_sliced(store, "cuda")
    on_cpu, on_gpu = open_store(store), open_store(store, device="cuda")
    expected = next(TrainingLoader(on_cpu, batch_size=4, seed=1).batches(0))[0]
    got = next(TrainingLoader(on_gpu, batch_size=4, seed=1, num_workers=2, pin_memory=True).batches(0))[0]
    assert got["gt"].is_cuda
    assert torch.equal(got["gt"].cpu(), expected["gt"])
    assert torch.equal(got["lq"].cpu(), expected["lq"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_message_advises_device_cpu(store: Path) -> None:
    with pytest.raises(DataError, match="device: cpu"):
        next(TrainingLoader(open_store(store, device="cuda"), batch_size=1, seed=0).batches(0))


def test_a_store_can_be_pickled_after_use(store: Path) -> None:
    dataset = open_store(store)
    expected = dataset.batch(KEYS, 0)["gt"]
    packed = pickle.dumps(dataset)
    assert len(packed) < 10_000  # the pixels are not in it
    assert torch.equal(pickle.loads(packed).batch(KEYS, 0)["gt"], expected)


class Stop(Exception):
    """Ends a build at a chosen point, as a kill would."""


@pytest.mark.parametrize("at", range(1, len(SIZES)))
def test_a_build_continues_where_it_stopped(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = make_store(*folders, tmp_path / "whole.store")
    output, write, written = tmp_path / "resumed.store", builder._write, []

    def write_some(file: Any, block: np.ndarray, offset: int) -> None:
        written.append(block)
        if len(written) == 2 * at:  # write only half of the LQ image of pair number `at`
            write(file, block.reshape(-1)[: block.size // 2], offset)
            raise Stop
        write(file, block, offset)

    monkeypatch.setattr(builder, "_write", write_some)
    with pytest.raises(Stop):
        make_store(*folders, output)
    assert not output.exists()
    monkeypatch.setattr(builder, "_write", write)
    source = Source(2, *map(str, folders), "{}x2", None)
    assert build_store(output, source, jobs=1) == len(SIZES) - at + 1
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if "resumed" in path.name) == ["resumed.store"]


def _interrupted(folders: tuple[Path, Path], output: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Stop a build after the last image and before the index; return the partial file and the journal."""

    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(builder, "finish_file", stop)
        with pytest.raises(Stop):
            make_store(*folders, output)
    return output.with_name(f"{output.name}.partial"), output.with_name(f"{output.name}.journal")


def _flip_pixel(partial: Path, journal: Path, hr: Path) -> None:
    with open(partial, "r+b") as file:
        file.seek(64 + 5)
        file.write(b"\xff")


def _cut_pixels(partial: Path, journal: Path, hr: Path) -> None:
    os.truncate(partial, partial.stat().st_size // 2)


def _cut_journal(partial: Path, journal: Path, hr: Path) -> None:
    os.truncate(journal, journal.stat().st_size - 20)


def _empty_journal(partial: Path, journal: Path, hr: Path) -> None:
    journal.write_bytes(b"")


def _damage_journal(partial: Path, journal: Path, hr: Path) -> None:
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([*lines[:2], b"\xff{" + lines[2][2:], *lines[3:]]))


def _change_image(partial: Path, journal: Path, hr: Path) -> None:
    write_image(hr / "b.png", 255 - read_rgb(hr / "b.png"))


def _add_image(partial: Path, journal: Path, hr: Path) -> None:
    for side, suffix in (("HR", ""), ("LR", "x2")):
        shutil.copy(hr.parent / side / f"a{suffix}.png", hr.parent / side / f"aa{suffix}.png")


@pytest.mark.parametrize(
    ("damage", "decoded"),
    [
        (_flip_pixel, 5),
        (_cut_pixels, None),
        (_cut_journal, 1),
        (_empty_journal, 5),
        (_damage_journal, 4),
        (_change_image, 3),
        (_add_image, 4),
    ],
)
def test_damaged_remains_of_an_interrupted_build_are_not_used(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path, Path, Path], None],
    decoded: int | None,
) -> None:
    output = tmp_path / "images.store"
    damage(*_interrupted(folders, output, monkeypatch), folders[0])
    count = build_store(output, Source(2, *map(str, folders), "{}x2", None), jobs=1)
    assert count == decoded or (decoded is None and 0 < count < 5)
    assert output.read_bytes() == make_store(*folders, tmp_path / "fresh.store").read_bytes()


def test_an_up_to_date_store_is_kept_and_an_outdated_one_replaced(folders: tuple[Path, Path], store: Path) -> None:
    source, before = Source(2, *map(str, folders), "{}x2", None), store.stat().st_mtime_ns
    assert build_store(store, source, jobs=1) == 0
    assert store.stat().st_mtime_ns == before
    _change_image(store, store, folders[0])
    assert build_store(store, source, jobs=1) == len(SIZES)
    assert build_store(store, source, jobs=1) == 0


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_store_is_rebuilt(folders: tuple[Path, Path], store: Path, cut: bool) -> None:
    source, before = Source(2, *map(str, folders), "{}x2", None), store.read_bytes()
    store.write_bytes(before[:-5] if cut else before[:-5] + bytes(5))
    assert build_store(store, source, jobs=1) == len(SIZES)
    assert store.read_bytes() == before


def test_two_builds_of_one_store_at_a_time_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, locked_elsewhere: Callable[[Path], AbstractContextManager[Any]]
) -> None:
    with (
        locked_elsewhere(tmp_path / "images.store.lock"),
        pytest.raises(DataError, match=r"process \d+ on .*images\.store\.partial"),
    ):
        make_store(*folders, tmp_path / "images.store")
    make_store(*folders, tmp_path / "images.store")


@pytest.mark.parametrize("what", ["gone", "changed", "new", "new LR"])
def test_a_store_of_changed_sources_is_refused(folders: tuple[Path, Path], store: Path, what: str) -> None:
    hr, lr = folders
    if what == "gone":
        (hr / "c.png").unlink()
    elif what == "changed":
        content = bytearray((hr / "c.png").read_bytes())
        content[-1] ^= 1
        (hr / "c.png").write_bytes(content)  # the size stays
    elif what == "new":
        shutil.copy(hr / "c.png", hr / "d.png")
    else:
        write_image(lr / "cx2.png", 255 - read_rgb(lr / "cx2.png"))
    with pytest.raises(DataError, match=r"images\.store is out of date: .*(c|d|cx2)\.png.*check_source: never"):
        open_store(store)
    assert len(open_store(store, check_source="never")) == len(SIZES)


def test_copied_sources_are_recognised_by_content(folders: tuple[Path, Path], store: Path) -> None:
    for path in folders[0].iterdir():
        os.utime(path, (1, 1))
    (folders[0] / "notes.txt").write_text("no image")
    assert len(open_store(store)) == len(SIZES)


def test_missing_source_folders_are_reported(folders: tuple[Path, Path], store: Path) -> None:
    shutil.rmtree(folders[1])
    with pytest.raises(DataError, match=r"source .*LR .*check_source: if_present.*'set'"):
        open_store(store)
    for check in ("if_present", "never"):
        assert len(open_store(store, check_source=check)) == len(SIZES)


def test_every_damage_is_found(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--verify", str(store)]) == 0
    whole = store.read_bytes()
    index_at = len(whole) - len(whole[whole.rindex(b"source") - 2 :])
    images = read_index(store).images
    rng = np.random.default_rng(0)
    for position in rng.integers(images[0].offset, images[0].offset + images[0].gt_bytes(2), 5).tolist():
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        store.write_bytes(damaged)
        capsys.readouterr()
        assert main(["--verify", str(store)]) == 1
        assert "damaged: a.png\n" in capsys.readouterr().out
    for position in [*rng.integers(index_at, len(whole), 20).tolist(), *range(40)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        store.write_bytes(damaged)
        with pytest.raises(DataError, match=r"images\.store.*safmn prepare store"):
            read_index(store)
    for length in [0, 10, 63, 64, *rng.integers(64, len(whole), 10).tolist(), len(whole) - 1]:
        store.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"images\.store"):
            open_store(store)


def test_mistakes_in_options(store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such patch store: .*none\.store.*safmn prepare store"):
        open_store(tmp_path / "none.store")
    with pytest.raises(DataError, match=r"2 images.*gt_size 74.*a\.png is 72x72"):
        open_store(store, gt_size=74)
    with pytest.raises(OptionError, match="gt_size"):
        open_store(store, gt_size=31)
    with pytest.raises(OptionError, match="tape"):
        open_store(store, device="tape")
    with pytest.raises(OptionError, match=r"images\.store .*scale 2, .*4"):
        build_dataset({"type": "PatchStore", "dataroot": str(store), "gt_size": 32}, phase="train", scale=4)


def test_mistakes_on_the_command_line(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "images.store"

    def refused(*names: str) -> None:
        assert main(arguments(folders, output)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(name in error for name in names)
        assert not output.exists()

    hr, lr = folders
    (hr / "b.png").write_bytes((hr / "b.png").read_bytes()[:50])
    refused("b.png")
    shutil.copy(hr / "c.png", hr / "b.png")
    refused("b.png", "bx2.png", "scale 2")
    (lr / "bx2.png").unlink()
    refused("bx2.png")
    shutil.rmtree(lr)
    refused("LR")
    with pytest.raises(SystemExit) as exited:
        main(["--hr", str(hr)])
    assert exited.value.code == 2
    output.write_bytes(b"something else of the user's, which must not be overwritten")
    assert main(["--hr", str(hr), "--scale", "2", "-o", str(output)]) == 2
    assert output.read_bytes().startswith(b"something")


def test_meta_info_chooses_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    meta, output = tmp_path / "meta.txt", tmp_path / "some.store"
    meta.write_text("c.png (1,1,3)\na.png (1,1,3)\n")
    assert main(arguments(folders, output, "--meta-info", str(meta))) == 0
    assert [image.hr.name for image in read_index(output).images] == ["c.png", "a.png"]
    assert len(open_store(output)) == 2


def _build(argv: list[str]) -> None:
    tqdm.set_lock(threading.RLock())  # tqdm's default lock is shared: a killed child would never release it
    main(argv)


@pytest.mark.forks  # a fork starts fast enough to be killed early
def test_a_killed_build_continues(tmp_path: Path) -> None:
    """SIGKILL a real build at several moments; the result equals the store of an undisturbed build."""
    folders = make_folders(tmp_path, sizes=[(300 + number, 400) for number in range(16)])
    output = tmp_path / "images.store"
    journal, kills = output.with_name("images.store.journal"), 0
    for lines in (1, 4, 9, 13):
        process = multiprocessing.get_context("fork").Process(target=_build, args=(arguments(folders, output),))
        with one_opencv_thread():
            process.start()
        while process.is_alive() and not (journal.exists() and journal.read_bytes().count(b"\n") > lines):
            time.sleep(0.0005)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills > 1
    assert main(arguments(folders, output)) == 0
    assert output.read_bytes() == make_store(*folders, tmp_path / "whole.store").read_bytes()


@pytest.mark.parametrize("fault", ["raises", "wrong pixels"])
def test_a_kernel_that_fails_on_this_machine_is_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gather(pixels: torch.Tensor, addresses: torch.Tensor, side: int) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("no compiler\nand more")
        return torch.zeros(len(addresses), 3, side, side)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    replaced = types.SimpleNamespace(gather=gather)
    monkeypatch.setitem(sys.modules, "safmn.kernels.gpu.gather", replaced)
    monkeypatch.setattr(gpu_kernels, "gather", replaced, raising=False)  # set if the real one was imported before
    patch_store._gather_kernel.cache_clear()
    assert patch_store._gather_kernel(torch.device("cpu")) is None
    patch_store._gather_kernel.cache_clear()
    assert {"raises": "RuntimeError: no compiler", "wrong pixels": "wrong pixels"}[fault] in caplog.text


def test_a_store_is_outdated_when_other_lq_images_match(tmp_path: Path) -> None:
    """The LQ image of 1.png is 1.bmp until a 1.png is added to the LQ folder."""
    write_image(tmp_path / "G" / "1.png", np.full((8, 8, 3), 9, np.uint8))
    write_image(tmp_path / "L" / "1.bmp", np.full((4, 4, 3), 10, np.uint8))
    (tmp_path / "list.txt").write_text("1.png (8,8,3)\n")
    source = Source(2, str(tmp_path / "G"), str(tmp_path / "L"), "{}", str(tmp_path / "list.txt"))
    build_store(tmp_path / "x.store", source, jobs=1)
    write_image(tmp_path / "L" / "1.png", np.full((4, 4, 3), 200, np.uint8))
    assert build_store(tmp_path / "x.store", source, jobs=1) == 1
    assert read_index(tmp_path / "x.store").images[0].lr.name == "1.png"


@pytest.mark.parametrize(
    "change",
    [{"offset": 2**40}, {"offset": 0}, {"offset": -64}, {"lq_height": 2**30}, {"lq_width": 0}, {"lq_width": -5}],
    ids=str,
)
def test_an_index_that_points_elsewhere_is_refused(store: Path, change: dict[str, int]) -> None:
    """The checksum of the index is right, but a GPU would read outside the pixels."""
    index = read_index(store)
    last = index.images[-1]
    changed = StoreIndex(index.source, [*index.images[:-1], msgspec.structs.replace(last, **change)])
    end = last.end(index.source.scale)
    with store.open("r+b") as file:
        file.truncate(end)
        finish_file(file, end, changed)
    with pytest.raises(DataError, match="the index of the patch store"):
        open_store(store)
    with store.open("r+b") as file:
        file.truncate(end)
        content = msgspec.msgpack.encode({"source": 3})
        file.seek(end)
        file.write(content)
        file.seek(0)
        file.write(struct.pack("<8sQQ16s", b"SAFMNPS\x01", end, len(content), digest_of(content)))
    with pytest.raises(DataError, match="the index of the patch store"):
        open_store(store)
