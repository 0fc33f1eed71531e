"""A run that is interrupted and resumed ends with the same files as an uninterrupted run."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import tiny_run
import torch

from safmn.runtime import distributed
from safmn.train import main
from safmn.training.checkpoint import Checkpointer
from safmn.training.models.sr_model import SRModel


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images and a finished, uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    tiny_run.make_images(folder)
    assert tiny_run.finish(tiny_run.write_options(folder, tiny_run.options(folder))) == 0
    return folder


@pytest.fixture
def fresh(uninterrupted: Path, tmp_path: Path) -> Path:
    """A folder without a run; its option file names the images in the folder ``uninterrupted``."""
    options = tiny_run.options(uninterrupted)
    options["path"]["experiments_root"] = str(tmp_path / "experiments")
    tiny_run.write_options(tmp_path, options)
    return tmp_path


def assert_same_end(fresh: Path, uninterrupted: Path) -> None:
    expected, got = tiny_run.fingerprint(uninterrupted), tiny_run.fingerprint(fresh)
    ignored = {
        name for name in expected | got if name.endswith(("state.json", "manifest.json"))
    }  # contain the folder's name
    assert len(expected.keys() - ignored) > 5
    assert {k: v for k, v in got.items() if k not in ignored} == {k: v for k, v in expected.items() if k not in ignored}
    last = [
        Checkpointer(folder / "experiments/tiny/training_states").load_latest() for folder in (fresh, uninterrupted)
    ]
    assert last[0].progress == last[1].progress


def kill_until_done(fresh: Path, uninterrupted: Path, workers: int, kills: int) -> None:
    options = tiny_run.options(uninterrupted)
    options["path"]["experiments_root"] = str(fresh / "experiments")
    options["datasets"]["train"]["num_worker_per_gpu"] = workers
    option_file = tiny_run.write_options(fresh, options)
    random_delay = random.Random(workers)
    done = 0
    while done < kills:
        done += tiny_run.kill_after(option_file, random_delay.uniform(0.05, 1.2))
        if (fresh / "experiments/tiny/models/net_g_24.pth").exists() and done < kills:  # finished: start a new run
            assert tiny_run.finish(option_file, "--auto_resume") == 0
            assert_same_end(fresh, uninterrupted)
            shutil.rmtree(fresh / "experiments")
    assert tiny_run.finish(option_file, "--auto_resume") == 0
    assert_same_end(fresh, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(fresh: Path, uninterrupted: Path, workers: int) -> None:
    kill_until_done(fresh, uninterrupted, workers, kills=10)


def test_resumed_from_every_iteration(fresh: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGUSR1 interrupts each of the 24 steps, so every iteration is a separate run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the uninterrupted run
    step = SRModel.training_step
    stop_at = 0

    def interrupted_step(self: SRModel, batches: object, iteration: int) -> object:
        # the check before training also makes a step, when no signal is handled yet
        if iteration == stop_at and signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batches, iteration)

    monkeypatch.setattr(SRModel, "training_step", interrupted_step)
    option_file = str(fresh / "options.yml")
    for stop_at in range(1, tiny_run.ITERATIONS + 1):
        status = main(["-opt", option_file, "--auto_resume"])
        assert status == 128 + signal.SIGUSR1
        assert Checkpointer(fresh / "experiments/tiny/training_states").iterations()[-1] == stop_at
    assert main(["-opt", option_file, "--auto_resume"]) == 0
    torch.set_num_threads(threads)
    assert_same_end(fresh, uninterrupted)


def _lose_a_rank_while_averaging() -> None:
    """Raise torch's error for a lost rank while the losses of step 8 are averaged over the ranks."""
    average, calls = distributed.mean_over_ranks, []

    def mean_over_ranks(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls.append(values)
        if len(calls) == 8:
            raise RuntimeError("Connection closed by peer")
        return average(values)

    distributed.mean_over_ranks = mean_over_ranks


def test_rank_lost_between_step_and_record(fresh: Path, uninterrupted: Path) -> None:
    """A step is not saved if its losses could not be recorded, so the record has no gap after the resume."""
    option_file = fresh / "options.yml"
    process = tiny_run.start(option_file, prepare=_lose_a_rank_while_averaging)
    process.join()
    assert process.exitcode != 0
    assert Checkpointer(fresh / "experiments/tiny/training_states").iterations()[-1] == 6
    assert re.search(r"iteration 8 .*not saved", option_file.with_suffix(".log").read_text())
    assert tiny_run.finish(option_file, "--auto_resume") == 0
    assert_same_end(fresh, uninterrupted)
