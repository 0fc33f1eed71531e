"""One rank of a training job with a deliberate error. tests/test_rank_errors.py runs this script with torchrun.

``rank_errors.py KIND OPTION_FILE [ARGUMENTS]``: KIND is the name of one of the functions below, which install the
error. When the error occurs, the rank writes "planted" to standard error.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from safmn.data.sample_keys import KeyedDataset
from safmn.errors import DataError
from safmn.training.checkpoint import Checkpointer
from safmn.training.models import SRModel

RANK = int(os.environ["RANK"])
AT = 8  # the iteration of the error


def planted() -> None:
    """Report that the deliberate error is reached."""
    sys.stderr.write(f"planted on rank {RANK}\n")


def in_step(what: Any) -> None:
    """Make rank 1 call ``what`` in the forward pass of iteration :data:`AT`."""
    losses = SRModel._image_losses

    def failing(self: SRModel, *arguments: Any) -> Any:
        if RANK == 1 and self.net_g.iteration == AT:
            planted()
            what()
        return losses(self, *arguments)

    SRModel._image_losses = failing  # type: ignore[method-assign]


def image(at: int = AT) -> None:
    """Make the loader of rank 1 fail at a damaged image."""
    get, asked = KeyedDataset.batch, 0

    def batch(self: KeyedDataset, keys: Any) -> Any:
        nonlocal asked
        asked += 1
        if RANK == 1 and asked == at:
            planted()
            raise DataError("cannot read /data/photo7.png: it is cut off")
        return get(self, keys)

    KeyedDataset.batch = batch  # type: ignore[method-assign]


def first_image() -> None:
    """Make the loader of rank 1 fail in the first step."""
    image(1)


def memory() -> None:
    """Make rank 1 run out of memory in a step."""

    def full() -> None:
        raise MemoryError("can't allocate memory: you tried to allocate 9 bytes")

    in_step(full)


def killed() -> None:
    """Make rank 1 kill itself in a step."""
    in_step(lambda: os.kill(os.getpid(), signal.SIGKILL))


def validation() -> None:
    """Make a metric fail on rank 1."""
    from safmn.evaluation import scoring as evaluate

    score = evaluate._score_all

    def failing(*arguments: Any) -> Any:
        if RANK == 1:
            planted()
            raise ZeroDivisionError("a bug in a metric")
        return score(*arguments)

    evaluate._score_all = failing


def disk() -> None:
    """Make the disk of rank 0 full when it writes the second checkpoint."""
    save = Checkpointer.save

    def full(self: Checkpointer, iteration: int, *arguments: Any) -> None:
        if iteration > 3:
            planted()
            raise self.cannot_write("the checkpoint", iteration, OSError(errno.ENOSPC, "No space left on device"))
        save(self, iteration, *arguments)

    Checkpointer.save = full  # type: ignore[method-assign]


def setup() -> None:
    """Make rank 1 fail to find its data."""
    from safmn.training import build as setup

    build = setup.build_loader

    def failing(*arguments: Any) -> Any:
        if RANK == 1:
            planted()
            time.sleep(0.5)
            raise DataError("there is no folder /data/of/this/node")
        return build(*arguments)

    setup.build_loader = failing


def nothing() -> None:
    """Install no error."""


if __name__ == "__main__":
    kind, option_file, *rest = sys.argv[1:]
    globals()[kind]()
    from safmn.train import main

    status = main(["-opt", option_file, *rest])
    Path(option_file).with_name(f"status{RANK}").write_text(str(status))
    sys.exit(status)
