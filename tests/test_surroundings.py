"""The environment of the package: closed terminals, no home, little shared memory, missing and old packages."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import pty
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
import yaml
from test_data_loader import Numbers, take

from safmn import imports
from safmn.data import TrainingLoader, build_dataset
from safmn.errors import DataError, OptionError, exit_status
from safmn.imaging import list_images, write_image
from safmn.inference.films import video
from safmn.kernels.cpu import build
from safmn.options import load_options
from safmn.prepare.meta import write_meta
from safmn.system.console import say
from safmn.system.files import atomic_path, cache_folder

REPOSITORY = Path(__file__).resolve().parent.parent
RUN = """
import sys, time
from safmn.training.experiment import start_logging
from safmn.system.signals import Interrupt
start_logging(None, is_main=True)
with open(sys.argv[1], "w", buffering=1) as said, Interrupt() as interrupt:
    said.write("ready\\n")
    while not interrupt:
        time.sleep(0.02)
    said.write(f"saved, {interrupt.exit_status}")
"""
without_advice = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_run_saves_when_its_terminal_or_pipe_closes(number: signal.Signals, status: int, tmp_path: Path) -> None:
    """Ctrl-C on ``train 2>&1 | tee log`` also ends tee, and closing a window closes its terminal."""
    said, (ours, theirs) = tmp_path / "said", pty.openpty() if number == signal.SIGHUP else os.pipe()
    command = [sys.executable, "-c", RUN, str(said)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=REPOSITORY, start_new_session=True
    )
    os.close(theirs)
    while process.poll() is None and not (said.exists() and said.read_text()):
        time.sleep(0.05)
    os.close(ours)
    process.send_signal(number)
    process.wait(timeout=30)
    assert said.read_text() == f"ready\nsaved, {status}"


def test_a_broken_pipe_ends_a_command_without_a_message(capfd: pytest.CaptureFixture[str]) -> None:
    @exit_status
    def run() -> int:
        raise BrokenPipeError(32, "Broken pipe")

    before = os.dup(1)
    try:
        assert run() == 141
    finally:
        os.dup2(before, 1)
    assert capfd.readouterr().err == ""


def test_characters_that_the_terminal_cannot_encode_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    @exit_status
    def run() -> int:
        say("€\udcff")
        sys.stdout.flush()
        return 0

    assert run() == 0
    assert written.getvalue() == b"\\u20ac\\udcff\n"


@pytest.mark.skipif(sys.platform == "darwin", reason="file names on macOS are UTF-8")
def test_file_names_that_are_not_utf8_are_refused_by_name(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "sub" / "a.png", np.zeros((8, 8, 3), np.uint8))
    os.rename(os.fsencode(tmp_path) + b"/images/sub/a.png", os.fsencode(tmp_path) + b"/images/sub/\xff.png")
    for refused in (
        lambda: list_images(tmp_path / "images" / "sub"),
        lambda: write_meta(tmp_path / "images", tmp_path / "meta.txt", recursive=True),
    ):
        with pytest.raises(DataError, match=r"udcff\.png'.*not UTF-8.*rename"):
            refused()


def test_without_a_home_the_cache_is_separate_for_each_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user who is not in /etc/passwd
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("SAFMN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SAFMN_CACHE")
    assert str(os.getuid()) in cache_folder().name


def test_a_cache_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kernels are built for this process only if the cache belongs to another user, as after ``sudo``."""
    monkeypatch.setenv("SAFMN_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "build", lambda source, flags, folder: folder / "built")
    monkeypatch.setattr(build, "_writable", lambda folder: False)

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    built = build.load_for_this_machine(REPOSITORY / "safmn" / "kernels" / "cpu" / "training.cpp", lambda path: path)
    monkeypatch.undo()
    assert tmp_path not in built.parents
    assert "for this process only" in caplog.text


def test_two_writers_of_one_file_have_different_temporary_files(tmp_path: Path) -> None:
    """This holds even if both have the same process number, as in two containers."""
    target = tmp_path / "file"
    with atomic_path(target) as first:
        with atomic_path(target) as second:
            first.write_text("first")
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"


class Whole(Numbers):
    """A data set that makes its batches itself, like patch stores."""

    def batch(self, keys: Any, seed: int) -> dict[str, Any]:
        return {"lq": torch.zeros(len(keys), 2)}


@pytest.mark.forks  # so that the worker has the full memory, too
@without_advice
@pytest.mark.parametrize("dataset", [Numbers(8), Whole(8)])
def test_shared_memory_that_is_full(dataset: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full shared memory gives advice; Docker's default is only 64 MB."""

    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)  # called when torch collates
    with pytest.raises(DataError, match=r"/dev/shm.*--shm-size.*num_worker_per_gpu: 0"):
        take(TrainingLoader(dataset, batch_size=2, seed=0, num_workers=1), 1)


def test_missing_tensorboard_is_reported_when_options_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tiny_run.options(tmp_path)
    content["logger"]["use_tb_logger"] = True
    file = tmp_path / "run.yml"
    file.write_text(yaml.safe_dump(content))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find_spec(name, *rest)
    )
    with pytest.raises(OptionError, match=r"use_tb_logger: .*tensorboard"):
        load_options(file, mode="train")


def test_pyav_that_is_too_old_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.SimpleNamespace(VideoFrame=object, __version__="16.0.1")
    monkeypatch.setitem(sys.modules, "av", old)
    with pytest.raises(DataError, match=r"PyAV 17.*16\.0\.1"):
        video.probe("film.mp4")


def test_imports_restore_the_module_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [str(tmp_path), *sys.path]
    monkeypatch.setattr(sys, "path", before.copy())
    with imports._on_path(tmp_path):
        assert sys.path[-1] == str(tmp_path)
        sys.path.insert(1, "its own")
    assert sys.path == [before[0], "its own", *before[1:]]
    with imports._on_path(tmp_path):
        sys.path[:] = before[1:]
    assert sys.path == before[1:]


def test_bundled_photographs_can_be_pickled_for_workers() -> None:
    section = {"name": "x", "type": "BundledPhotos", "names": ["coffee.png"], "gt_size": 32}
    dataset = build_dataset(section, phase="val", scale=2)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0]["lq"], dataset[0]["lq"])
