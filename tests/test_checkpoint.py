"""Checkpoints are complete or absent; damage is detected, and then the previous checkpoint is loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safmn.errors import CheckpointError
from safmn.training import checkpoint as module
from safmn.training import state_format
from safmn.training.checkpoint import Checkpointer, load


def state(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "conv.bias": torch.randn(4, generator=generator),
    }
    moments = {0: {"step": torch.tensor(float(seed)), "exp_avg": torch.randn(4, generator=generator)}}
    groups = [{"lr": 1e-3, "betas": [0.9, 0.99], "params": [0], "foreach": None}]
    return {"params": weights, "optimizer": {"state": moments, "param_groups": groups}}


def save(folder: Path, iteration: int) -> Path:
    checkpointer = Checkpointer(folder)
    checkpointer.save(iteration, {"net_g": state(iteration)}, {"iteration": iteration}, {"name": "x"})
    return checkpointer.path(iteration)


def assert_is(checkpoint: Any, iteration: int) -> None:
    expected = state(iteration)
    assert checkpoint.iteration == iteration
    assert checkpoint.progress == {"iteration": iteration}
    got = checkpoint.networks["net_g"]
    assert got["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    for name, tensor in expected["params"].items():
        assert torch.equal(got["params"][name], tensor)
    assert torch.equal(got["optimizer"]["state"][0]["exp_avg"], expected["optimizer"]["state"][0]["exp_avg"])


def test_round_trip(tmp_path: Path) -> None:
    assert_is(load(save(tmp_path, 12)), 12)


def test_same_state_same_bytes(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 5), save(tmp_path / "b", 5)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def damage(folder: Path, number: int, kind: str) -> str:
    """Truncate a randomly chosen file or flip one of its bits, and return a description of the damage."""
    generator = random.Random(number)
    file = generator.choice(sorted(folder.iterdir()))
    content = bytearray(file.read_bytes())
    if kind == "truncation":
        file.write_bytes(content[: generator.randrange(len(content))])
    else:
        place = generator.randrange(len(content) * 8)
        content[place // 8] ^= 1 << place % 8
        file.write_bytes(content)
    return f"{kind} {number} of {file.name}"


@pytest.mark.parametrize(("kind", "times"), [("truncation", 64), ("bit flip", 200)])
def test_damage_is_detected_and_logged_and_the_previous_checkpoint_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, times: int
) -> None:
    before, newest = save(tmp_path / "whole", 10), save(tmp_path / "whole", 20)
    for number in range(times):
        folder = tmp_path / f"damaged{number}"
        shutil.copytree(newest, folder / newest.name)
        shutil.copytree(before, folder / before.name)
        what = damage(folder / newest.name, number, kind)
        with pytest.raises(CheckpointError):
            load(folder / newest.name)
        caplog.clear()
        loaded = Checkpointer(folder).load_latest()
        assert loaded is not None, what
        assert_is(loaded, 10)
        assert newest.name in caplog.text, what


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    (save(tmp_path, 10) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint"):
        Checkpointer(tmp_path).load_latest()


def test_without_checkpoints_load_latest_returns_none(tmp_path: Path) -> None:
    assert Checkpointer(tmp_path / "absent").load_latest() is None


class Crash(BaseException):
    """Simulates a kill: the writer does not catch it."""


def system_calls(monkeypatch: pytest.MonkeyPatch, crash_at: int | None, error: BaseException) -> Iterator[int]:
    """Count the writer's steps (writing, flushing, renaming) and raise ``error`` at one of them.

    If this step writes a file, half of the file is written. The first ``next`` installs the counters, and the second
    removes them and returns the number of steps.
    """
    count = 0
    steps: list[tuple[Any, str]] = [
        (module, "flush_file"),
        (module, "flush_directory"),
        (module, "replace"),
        (Path, "write_bytes"),
        (Path, "mkdir"),
        (module.shutil, "rmtree"),
    ]
    called = set()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            called.add(name)
            if count == crash_at:
                if name.startswith("write"):
                    path, content = arguments
                    function(path, content[: len(content) // 2], **keywords)
                raise error
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        for owner, name in steps:
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        yield 0
    if crash_at is None:
        assert called == {name for _, name in steps}  # otherwise a step in the list is never tested
    yield count


@pytest.mark.parametrize("replacing", [False, True])
def test_crash_at_each_step_of_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool) -> None:
    steps = system_calls(monkeypatch, None, Crash())
    next(steps)
    save(tmp_path / "count", 20)
    total = next(steps)
    assert total >= 12
    for step in range(1, total + 1 + 3 * replacing):
        folder = tmp_path / str(step)
        save(folder, 10)
        if replacing:
            save(folder, 20)
        patched = system_calls(monkeypatch, step, Crash())
        next(patched)
        crashed = False
        try:
            save(folder, 20)
        except Crash:
            crashed = True
        next(patched)
        checkpointer = Checkpointer(folder)
        checkpointer.tidy()
        loaded = checkpointer.load_latest()
        assert loaded is not None
        assert_is(loaded, loaded.iteration)
        assert loaded.iteration in ({20} if replacing or not crashed else {10, 20})
        assert {path.name for path in folder.iterdir()} <= {"000000010", "000000020"}  # no unfinished folders


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10)
    steps = system_calls(monkeypatch, 4, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    next(steps)
    with pytest.raises(CheckpointError, match=r"iteration 20.*No space left.*iteration 10.*--auto_resume"):
        save(tmp_path, 20)
    next(steps)
    assert Checkpointer(tmp_path).iterations() == [10]
    assert_is(Checkpointer(tmp_path).load_latest(), 10)


def test_pruning(tmp_path: Path) -> None:
    for iteration in (10, 15, 20, 30, 40, 44, 50):
        save(tmp_path, iteration)
    checkpointer = Checkpointer(tmp_path, keep_last=2, keep_every=20)
    checkpointer.prune(50, scheduled=lambda iteration: iteration % 10 == 0, best=15)
    assert checkpointer.iterations() == [15, 20, 40, 50]  # best, every 20th, last two; 44 is not scheduled


def test_pruning_keeps_checkpoints_later_than_the_current_iteration(tmp_path: Path) -> None:
    for iteration in (10, 20, 25, 30, 40, 50):
        save(tmp_path, iteration)
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    checkpointer.prune(25, scheduled=lambda iteration: iteration % 10 == 0, best=None)
    assert checkpointer.iterations() == [20, 25, 30, 40, 50]


def test_a_checkpoint_that_cannot_be_deleted_stays_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on Windows, when another program has a file of it open."""
    for iteration in (10, 20, 30):
        save(tmp_path, iteration)

    def open_elsewhere(path: Path) -> None:
        raise PermissionError(errno.EACCES, "the file is open", str(path))

    monkeypatch.setattr(module.shutil, "rmtree", open_elsewhere)
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    checkpointer.prune(30, scheduled=lambda iteration: iteration % 10 == 0, best=20)
    assert checkpointer.iterations() == [10, 20, 30]
    (record,) = caplog.records
    assert "000000010 is not needed but cannot be deleted" in record.getMessage()


def test_later_checkpoints_are_kept_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)  # a run in another test may have turned it off
    checkpointer = Checkpointer(tmp_path)
    for aside in ("damaged-000000020", "damaged-000000020-2"):
        for iteration in (10, 20):
            save(tmp_path, iteration)
        checkpointer.set_aside_after(10, "damaged")
        assert checkpointer.iterations() == [10]
        assert (tmp_path / aside / "state.json").is_file()
        assert f"is kept as {tmp_path / aside}" in caplog.text


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
tensors = st.integers(0, 4).map(lambda n: torch.arange(n, dtype=torch.float32))
keys = st.text("abc.", max_size=3) | st.integers(0, 9)
states = st.recursive(
    plain | tensors, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=150, deadline=None)
@given(states)
def test_any_state_survives_the_format(value: Any) -> None:
    document, flat = state_format.split({"state": value})
    assert equal(state_format.join(document, flat)["state"], value)


def signed(folder: Path, files: dict[str, Any], iteration: Any = 7) -> None:
    """Write a manifest with the right checksums for any files."""
    facts = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if isinstance(content, bytes)
        else content
        for name, content in files.items()
    }
    body = json.dumps({"format": 1, "iteration": iteration, "files": facts})
    (folder / "manifest.json").write_text(f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n")


@pytest.mark.parametrize(
    "document",
    [
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"networks": {"net_g": {"a": {"$tensor": "none"}}}, "iteration": 7, "progress": {}, "options": {}}',
        b'{"networks": {"net_g": {"$items": [[[], 1]]}}, "iteration": 7, "progress": {}, "options": {}}',
        b'{"networks": {"other": {}}, "iteration": 7, "progress": {}, "options": {}}',
    ],
)
def test_a_checkpoint_from_elsewhere_is_refused_without_a_traceback(tmp_path: Path, document: bytes) -> None:
    folder = save(tmp_path, 7)
    (folder / "state.json").write_bytes(document)
    signed(folder, {"state.json": document, "net_g.safetensors": (folder / "net_g.safetensors").read_bytes()})
    with pytest.raises(CheckpointError, match="was not written by safmn train"):
        load(folder)


def test_a_manifest_with_files_elsewhere_endless_files_or_wrong_types_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    for name in ("../outside", "/dev/zero", "a/../state.json"):
        signed(folder, {name: {"bytes": 0, "sha256": "0"}})
        with pytest.raises(CheckpointError, match=f"'{name}' is not a file in this folder"):
            load(folder)
    (folder / "endless").symlink_to("/dev/zero")
    signed(folder, {"endless": {"bytes": 0, "sha256": "0"}})
    with pytest.raises(CheckpointError, match="endless does not match"):
        load(folder)
    signed(folder, {"state.json": 3})
    with pytest.raises(CheckpointError, match="manifest is invalid"):
        load(folder)
    signed(folder, {}, iteration=[])
    with pytest.raises(CheckpointError, match="manifest is invalid"):
        load(folder)
