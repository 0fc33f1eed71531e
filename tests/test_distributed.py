"""Jobs of two processes with torchrun: dying ranks, signals, restarts, and agreement with a single process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import torch.distributed as dist

from safmn.data import build_dataset
from safmn.errors import CheckpointError, OptionError
from safmn.evaluation.scoring import Interrupted, evaluate
from safmn.runtime import distributed
from safmn.runtime.distributed import Ranks
from safmn.system.signals import Interrupt
from safmn.training.checkpoint import Checkpointer
from safmn.training.resuming import _check_ranks_agree
from safmn.training.step_flags import StepFlags
from safmn.weights import load_network

REPOSITORY = Path(__file__).resolve().parent.parent
ITERATIONS = 120
SAVE_EVERY = 10


def write_options(folder: Path, images: Path) -> Path:
    """Write the options of a run that is long enough to be interrupted, with two samples per rank."""
    content = tiny_run.options(images, total_iter=ITERATIONS)
    content["path"]["experiments_root"] = str(folder / "experiments")
    content["datasets"]["train"]["dataset_enlarge_ratio"] = 4
    content["val"]["val_freq"] = 40
    content["logger"]["save_checkpoint_freq"] = SAVE_EVERY
    return tiny_run.write_options(folder, content)


class Job:
    """A ``torchrun`` process with two ranks."""

    def __init__(self, option_file: Path, *arguments: str, restarts: int = 0) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1"]
        command += [str(REPOSITORY / "safmn/train.py"), "-opt", str(option_file), *arguments]
        self.option_file = option_file
        self.states = option_file.parent / "experiments/tiny/training_states"
        self.log = option_file.parent / "job.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def iteration(self) -> int:
        """Return the iteration of the newest checkpoint, or 0."""
        return max(Checkpointer(self.states).iterations(), default=0)

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Poll until ``condition()`` is true, and return its value."""
        deadline = time.monotonic() + 120
        while not (found := condition()):
            assert self.process.poll() is None, f"the job has ended:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.01)
        return found

    def wait_until_past(self, iteration: int) -> None:
        """Poll until there is a checkpoint later than ``iteration``."""
        self.wait_for(lambda: self.iteration() > iteration)

    def rank(self, number: int) -> Any:
        """Return the process id of a rank, or None if it is not running."""
        return next((pid for pid, rank in processes_with(self.option_file) if rank == str(number)), None)

    def join(self) -> int:
        """Wait for the end of the job and return its exit status."""
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job does not end:\n{self.log.read_text()[-3000:]}")


def processes_with(option_file: Path) -> Iterator[tuple[int, str | None]]:
    """Yield process id and rank of every process with the option file in its command line."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if str(option_file).encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                environment = dict(
                    entry.split("=", 1) for entry in (folder / "environ").read_text().split("\0") if "=" in entry
                )
                yield int(folder.name), environment.get("RANK")


def assert_no_orphans(option_file: Path) -> None:
    deadline = time.monotonic() + 5
    while left := list(processes_with(option_file)):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished job of two processes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert Job(write_options(folder, images)).join() == 0
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_signalled_and_restarted_job_ends_with_the_same_bytes(
    images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    option_file = write_options(tmp_path, images)

    job = Job(option_file, restarts=1)  # rank 0 dies: torchrun restarts both ranks, and they resume
    job.wait_until_past(0)
    first = job.rank(0), job.rank(1)
    os.kill(first[0], signal.SIGKILL)
    job.wait_for(lambda: job.rank(1) not in (None, first[1]))
    job.wait_until_past(job.iteration())
    os.kill(job.rank(1), signal.SIGKILL)  # no restart is left, so torchrun ends the job
    assert job.join() != 0
    assert_no_orphans(option_file)
    reached = job.iteration()
    assert SAVE_EVERY < reached < ITERATIONS

    job = Job(option_file, "--auto_resume")  # a signal to torchrun reaches the ranks, which save and end
    job.wait_until_past(reached)
    reached = job.iteration()
    began = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    assert job.join() != 0
    assert time.monotonic() - began < 25  # torchrun kills ranks later than that
    assert_no_orphans(option_file)
    assert "SIGTERM: finishing the step" in job.log.read_text()
    assert reached <= job.iteration() < ITERATIONS

    assert Job(option_file, "--auto_resume").join() == 0
    assert_same_results(uninterrupted, tmp_path)


def assert_same_results(first: Path, second: Path) -> None:
    """Compare the files of two runs byte by byte, except those that contain the folder's name."""
    prints = [
        {name: digest for name, digest in tiny_run.fingerprint(folder).items() if not name.endswith(".json")}
        for folder in (first, second)
    ]
    assert len(prints[0]) > 5
    assert prints[0] == prints[1]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SRModel", "RealGANModel"])
def test_two_ranks_train_like_one_with_their_batches(model: str, images: Path, tmp_path: Path) -> None:
    files = []
    for batch in (1, 2):
        folder = tmp_path / f"{batch} per rank"
        folder.mkdir()
        content = tiny_run.options(images) if model == "SRModel" else tiny_run.real_options(images, folder, model, 0)
        content["path"]["experiments_root"] = str(folder / "experiments")
        if model == "RealGANModel":
            content["degradation"]["mode"] = "per_sample"  # the pool depends on the batch size
            del content["train"]["ldl_opt"]  # is not continuous: it compares two networks that are nearly equal
        content["datasets"]["train"]["batch_size_per_gpu"] = batch
        content["train"]["total_iter"] = 12
        files.append(tiny_run.write_options(folder, content))
    assert Job(files[0]).join() == 0
    assert tiny_run.finish(files[1]) == 0
    two, one = ([entry for entry in tiny_run.record(file.parent) if "lr" in entry] for file in files)
    assert [entry["iter"] for entry in two] == list(range(1, 13))
    for ours, expected in zip(two, one, strict=True):
        losses = {name: value for name, value in expected.items() if name.startswith("l_")}
        assert len(losses) >= 2
        assert {name: ours[name] for name in losses} == pytest.approx(losses, rel=1e-4)


@pytest.mark.slow
def test_validation_shared_by_two_ranks_gives_the_numbers_of_one(images: Path, uninterrupted: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the ranks
    network = load_network(uninterrupted / f"experiments/tiny/models/net_g_{ITERATIONS}.pth", param_key="params_ema")
    options = tiny_run.options(images)
    dataset = build_dataset(options["datasets"]["val"], phase="val", scale=2)
    result = evaluate(network, dataset, name="val", metrics=options["val"]["metrics"], device="cpu")
    torch.set_num_threads(threads)
    recorded = [entry for entry in tiny_run.record(uninterrupted) if "set" in entry]
    assert [entry["iter"] for entry in recorded] == [40, 80, 120]
    assert recorded[-1]["psnr"] == pytest.approx(result.mean["psnr"], abs=1e-4)  # training validates on native kernels


def test_a_signal_ends_a_validation_on_every_rank(monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    """A rank without the signal raises Interrupted when it gathers that of the other rank."""
    options = tiny_run.options(images)
    dataset = build_dataset(options["datasets"]["val"], phase="val", scale=2)

    monkeypatch.setattr("safmn.evaluation.scoring.on_all_ranks", lambda outcome: [outcome, Interrupted()])
    network = torch.nn.Upsample(scale_factor=2)
    arguments = {"name": "val", "metrics": options["val"]["metrics"], "device": "cpu"}
    with pytest.raises(Interrupted):
        evaluate(network, dataset, rank=0, world_size=2, **arguments)
    evaluate(network, dataset, **arguments)


def test_a_signal_to_one_rank_gives_the_exit_status_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.tensor([0.0, float(signal.SIGUSR1)])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flags, op: flags.copy_(torch.maximum(flags, other)))
    watch = StepFlags(torch.device("cpu"), Ranks(0, 2))
    verdicts = watch.push(7, torch.tensor(0.0), stop=0, batches=[])
    assert [(verdict.iteration, verdict.nonfinite, verdict.stop) for verdict in verdicts] == [
        (7, False, signal.SIGUSR1)
    ]
    interrupt = Interrupt()
    interrupt.join(0)
    assert not interrupt
    interrupt.join(verdicts[0].stop)
    assert interrupt.exit_status == 138


def test_ranks_that_see_different_checkpoints_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from safmn.training.experiment import Experiment

    experiment = Experiment(tmp_path)
    _check_ranks_agree(0, experiment)
    monkeypatch.setattr(distributed, "on_all_ranks", lambda value: [value, 30])
    with pytest.raises(CheckpointError, match=r"iterations 0, 30 .*path\.experiments_root"):
        _check_ranks_agree(0, experiment)


def test_a_job_that_torchrun_restarted_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not distributed.restarted()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not distributed.restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert distributed.restarted()


@pytest.mark.forks
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can signal the children of a dying process")
def test_a_rank_ends_when_torchrun_dies() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def rank() -> None:
        distributed._leave_with_parent()
        theirs.send(os.getpid())
        signal.pause()

    def torchrun() -> None:
        context.Process(target=rank).start()
        signal.pause()

    launcher = context.Process(target=torchrun)
    launcher.start()
    child = ours.recv()
    launcher.kill()
    launcher.join()

    def runs() -> bool:
        try:  # an ended process stays as a zombie where no init process collects it, as in many containers
            return "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text(encoding="utf-8")
        except OSError:
            return False

    deadline = time.monotonic() + 10
    while runs() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs()


def test_a_backend_that_torch_lacks_is_replaced_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Windows has no nccl."""
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert distributed._usable_backend("nccl") == "gloo"
    assert "no nccl" in caplog.text
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert distributed._usable_backend("nccl") == "nccl"


def test_a_job_that_cannot_be_joined_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"torchrun --nproc_per_node N.*python -m torch\.distributed\.run"):
        distributed.join("pytorch")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_leave_with_parent", lambda: None)
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(OptionError, match=r"no torch\.distributed: train in one process"):
        distributed.join("pytorch")
