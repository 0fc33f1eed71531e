"""Small images are computed several at once: the same files, whatever fails or stops in between."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from repeater import repeated, repeater
from skimage import data

from safmn.errors import DataError
from safmn.inference.file_jobs import FileJob
from safmn.inference.file_run import Run
from safmn.inference.parallel import Parallel
from safmn.inference.upscaler import Upscaler

SIDES = [(40 + 3 * number, 64 - number) for number in range(14)]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def jobs(tmp_path: Path) -> list[FileJob]:
    """Crops of a photograph, each of its own size, and where they are written."""
    jobs = []
    for number, (height, width) in enumerate(SIDES):
        source = tmp_path / f"{number:02d}.png"
        Image.fromarray(data.astronaut()[number : number + height, 100 : 100 + width]).save(source)
        jobs.append(FileJob(source, tmp_path / "out" / source.name))
    return jobs


class Counting(Upscaler):
    """An upscaler that counts how many calls run at once; the first ones wait for one another."""

    running = most = 0
    threads: set[int] = set()  # noqa: RUF012 - replaced in each test
    meeting: threading.Barrier | None = None
    broken: Path | None = None

    def __call__(self, image, **keywords):  # type: ignore[no-untyped-def]
        self.running += 1
        self.most = max(self.most, self.running)
        self.threads = self.threads | {torch.get_num_threads()}
        if self.meeting is not None and threading.current_thread() is not threading.main_thread():
            with contextlib.suppress(threading.BrokenBarrierError):
                self.meeting.wait(5)
        try:
            return super().__call__(image, **keywords)
        finally:
            self.running -= 1


def run_of(upscaler: Upscaler) -> Run:
    return Run(upscaler, 95, 10**9, compare=False, overwrite=False)


def exact(job: FileJob) -> bool:
    return np.array_equal(np.asarray(Image.open(job.target)), repeated(np.asarray(Image.open(job.source))))


def test_small_images_are_computed_at_once_with_one_thread_each(three_threads: None, jobs: list[FileJob]) -> None:
    upscaler = Counting(repeater(), backend="eager", device="cpu")
    upscaler.meeting = threading.Barrier(3)  # passes only if three are computed at once
    run = run_of(upscaler)
    run.all(jobs[:12])
    assert (run.done, run.failures) == (12, [])
    assert not upscaler.meeting.broken
    assert upscaler.most == 3
    assert upscaler.threads == {1}
    assert all(map(exact, jobs[:12]))
    assert torch.get_num_threads() == 3


def test_a_large_image_is_computed_alone_with_all_threads(
    three_threads: None, jobs: list[FileJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safmn.inference.parallel._SMALL", 55 * 59)
    alone = []

    class Watching(Counting):
        def __call__(self, image, **keywords):  # type: ignore[no-untyped-def]
            if image.shape[0] * image.shape[1] > 55 * 59:
                alone.append((self.running, torch.get_num_threads()))
            return super().__call__(image, **keywords)

    upscaler = Watching(repeater(), backend="eager", device="cpu")
    run = run_of(upscaler)
    mixed = [job for pair in zip(jobs[:7], jobs[7:], strict=True) for job in pair]  # small, large, small, large, ...
    run.all(mixed)
    assert run.done == 14
    assert alone == [(0, 3)] * len(alone)
    assert len(alone) == sum(height * width > 55 * 59 for height, width in SIDES) > 3
    assert all(map(exact, jobs))


def test_one_file_that_fails_stops_no_other(three_threads: None, jobs: list[FileJob]) -> None:
    jobs[5].source.write_bytes(jobs[5].source.read_bytes()[:200])  # cannot be read

    class Failing(Upscaler):
        def __call__(self, image, **keywords):  # type: ignore[no-untyped-def]
            if image.shape[:2] == SIDES[8]:
                raise DataError("not this one")
            return super().__call__(image, **keywords)

    run = run_of(Failing(repeater(), backend="eager", device="cpu"))
    run.all(jobs)
    assert run.done == 12
    assert len(run.failures) == 2
    assert jobs[5].source.name in run.failures[0]
    assert run.failures[1] == f"{jobs[8].source}: not this one"
    assert all(exact(job) for number, job in enumerate(jobs) if number not in (5, 8))


def test_an_interrupted_run_loses_and_repeats_nothing(three_threads: None, jobs: list[FileJob]) -> None:
    class Stopping(Upscaler):
        def __call__(self, image, **keywords):  # type: ignore[no-untyped-def]
            if image.shape[:2] == SIDES[6]:
                raise KeyboardInterrupt
            return super().__call__(image, **keywords)

    with pytest.raises(KeyboardInterrupt):
        run_of(Stopping(repeater(), backend="eager", device="cpu")).all(jobs)
    done = {job.target: job.target.stat().st_mtime_ns for job in jobs if job.target.exists()}
    assert {job.target for job in jobs[:6]} <= set(done)  # all that was computed before is written
    assert len(done) < len(jobs)
    assert sorted((jobs[0].target.parent).iterdir()) == sorted(done)  # and nothing is left half-written
    run = run_of(Upscaler(repeater(), backend="eager", device="cpu"))
    run.all(jobs)
    assert (run.done, run.kept) == (len(jobs) - len(done), len(done))
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert all(map(exact, jobs))


def test_images_are_computed_one_by_one_before_the_back_end_is_known(three_threads: None) -> None:
    upscaler = Upscaler(repeater(), device="cpu")
    with Parallel() as parallel:
        assert not parallel.takes(upscaler, 64 * 64)
        upscaler(data.astronaut()[:64, :64].copy())
        assert parallel.takes(upscaler, 64 * 64) == upscaler._current_engine().whole.follows_threads
        assert not parallel.takes(upscaler, 2**40)


def test_with_one_thread_nothing_is_computed_at_once() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with Parallel() as parallel:
        assert not parallel.takes(Upscaler(repeater(), backend="eager", device="cpu"), 1)
    torch.set_num_threads(before)
