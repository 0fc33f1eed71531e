"""After an error on one of two ranks, all ranks end, report the rank and the reason, and the run can be resumed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_run

from safmn.training.checkpoint import Checkpointer

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("rank_errors.py")
LIMIT = 240  # seconds until a job must have ended; it takes about ten, but more on a busy machine


@dataclass
class Ended:
    """The outcome of a job of two ranks."""

    folder: Path
    said: str  # stderr of both ranks
    seconds: float

    @property
    def log(self) -> str:
        [path] = (self.folder / "experiments/tiny").glob("train_*.log")
        return path.read_text()

    def status(self, rank: int) -> str:
        path = self.folder / f"status{rank}"
        return path.read_text() if path.exists() else "none"

    def checkpoints(self) -> list[int]:
        return Checkpointer(self.folder / "experiments/tiny/training_states").iterations()


def job(kind: str, images: Path, folder: Path, *arguments: str) -> Ended:
    folder.mkdir(exist_ok=True)
    content = tiny_run.options(images, total_iter=12)
    content["path"]["experiments_root"] = str(folder / "experiments")
    content["datasets"]["train"] |= {"batch_size_per_gpu": 1, "num_worker_per_gpu": 0}
    content["logger"]["save_checkpoint_freq"] = 3
    content["sanity"] = False  # the errors are planted at iterations of the run itself
    option_file = tiny_run.write_options(folder, content)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--monitor-interval", "0.1", str(SCRIPT), kind, str(option_file), *arguments]
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return Ended(folder, done.stderr, time.monotonic() - began)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job without an error."""
    ended = job("nothing", images, tmp_path_factory.mktemp("whole") / "run")
    assert ended.status(0) == ended.status(1) == "0", ended.said[-3000:]
    return ended.folder


@pytest.mark.parametrize(
    ("kind", "status", "saved", "why"),
    [
        ("image", "2", 7, "rank 1 stopped: cannot read /data/photo7.png"),
        ("memory", "1", 7, "rank 1 stopped: MemoryError: can't allocate"),
        ("killed", "1", 7, r"rank 1 (process"),
        ("validation", "1", 6, "rank 1 stopped: ZeroDivisionError: a bug in a metric"),
    ],
)
def test_the_run_is_saved_and_resumes_exactly(
    kind: str, status: str, saved: int, why: str, images: Path, whole: Path, tmp_path: Path
) -> None:
    ended = job(kind, images, tmp_path / kind)
    assert "planted on rank 1" in ended.said
    assert ended.status(0) == status, ended.said[-3000:]
    assert why in ended.log
    assert f"safmn: error: {why}" in ended.said
    assert ended.checkpoints()[-1] == saved
    assert tiny_run.MISFIT not in ended.said

    if kind not in ("image", "memory"):  # the other kinds are saved by the same code
        return
    again = job("nothing", images, ended.folder, "--auto_resume")
    assert again.status(0) == again.status(1) == "0", again.said[-3000:]
    prints = [
        {name: digest for name, digest in tiny_run.fingerprint(folder).items() if not name.endswith(".json")}
        for folder in (whole, ended.folder)
    ]
    assert len(prints[0]) > 5
    assert prints[0] == prints[1]


@pytest.mark.parametrize(
    ("kind", "rank", "why"),
    [
        ("first_image", 1, "rank 1 stopped: cannot read /data/photo7.png"),
        ("setup", 1, "rank 1 stopped: there is no folder /data/of/this/node"),
        ("disk", 0, "rank 0 stopped: cannot write the checkpoint: [Errno 28] No space left on device"),
    ],
)
def test_all_ranks_end_with_the_status_and_the_reason_of_one(
    kind: str, rank: int, why: str, images: Path, tmp_path: Path
) -> None:
    ended = job(kind, images, tmp_path / kind)
    assert f"planted on rank {rank}" in ended.said
    assert f"safmn: error: {why}" in ended.said, ended.said[-3000:]
    assert tiny_run.MISFIT not in ended.said
    assert "Traceback" not in ended.said.split("torch/distributed/elastic")[0]
    assert ended.status(0) == ended.status(1) == "2"
    assert ended.checkpoints() == ([3] if kind == "disk" else [])
