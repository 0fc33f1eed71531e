"""Loader worker processes that behave: one thread each, deaf to group signals, never outliving their parent."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch

from safmn.errors import DataError
from safmn.system.signals import ignore_group_signals, wait_for_sigterm

_POLL_SECONDS = 0.5


def _watch(parent: int) -> None:
    """Leave as soon as the parent is gone or asks for it with SIGTERM. Runs in a thread of the worker."""
    process = multiprocessing.parent_process()  # also right where a fork server, not the parent, started the worker
    while process is not None and process.is_alive():
        if wait_for_sigterm(parent, _POLL_SECONDS):
            break
    os._exit(0)


_CRASHES = ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE")
_START_AGAIN = "Start again with --auto_resume."


def died(error: Exception, exit_code: int | None = None) -> DataError:
    """The error to raise where ``error`` says that a worker is gone: what is known about how, and what to do.

    Args:
        exit_code: of the worker, as multiprocessing reports it (a signal is negative); None: what ``error`` says.
    """
    text = " ".join(str(error).split())
    if exit_code is None:
        exit_code = _exit_code(text)
    return DataError(f"a loader worker {_how(exit_code, text)} {_START_AGAIN}")


def _exit_code(text: str) -> int | None:
    """What torch's message says about the end of a worker."""
    if found := re.search(r"exit code (\d+)", text):
        return int(found[1])
    if found := re.search(r"killed by signal: ([^.]+)\.", text):
        names = {signal.strsignal(number): number for number in signal.valid_signals()}
        return -names[found[1]] if found[1] in names else None
    return None


def _how(exit_code: int | None, text: str) -> str:
    """How a worker died, and what to do about it."""
    if exit_code is None:
        return f"died ({text}). Its own message, if there is one, stands above."
    if exit_code >= 0:
        return (
            f"ended by itself with exit status {exit_code}: something in the data set, or in what `imports` names, "
            "called exit or could not be started in a process of its own; its message stands above. "
            "num_worker_per_gpu: 0 loads without workers."
        )
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    if name == "SIGKILL":
        return (
            "was killed (SIGKILL): by hand, or by the system because memory ran out (`dmesg` tells). For memory lower "
            "datasets.train.num_worker_per_gpu, batch_size_per_gpu or the images' size."
        )
    if name == "SIGBUS":
        return (
            "was killed (SIGBUS): a file that it read was cut meanwhile, or /dev/shm is full. Give it more (docker run "
            "--shm-size=2g), or set num_worker_per_gpu lower."
        )
    if name in _CRASHES:
        return (
            f"crashed ({name}) in a library: in decoding an image, or in what the data set calls. With "
            "num_worker_per_gpu: 0 the run itself crashes at the same image, and python -X faulthandler shows where."
        )
    return f"was ended by {name}, from outside."


def is_death(error: Exception) -> bool:
    """Whether an error is torch's about a dead worker."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def exit_code_of(workers: Iterable[Any]) -> int | None:
    """The exit code of a worker that is gone otherwise than with 0; None where there is none."""
    return next((worker.exitcode for worker in workers if worker.exitcode), None)


@contextmanager
def explain_death() -> Iterator[None]:
    """torch's error about a dead worker as a :class:`DataError`.

    torch raises it from a signal handler, so wherever the main thread is: this goes around all that runs meanwhile.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_death(error):
            raise
        raise died(error) from error


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Fork inside this context: OpenCV's pool of threads is ended before, and may start again afterwards.

    The child of a process with such a pool has the pool but not its threads, and waits for them for ever as soon as it
    changes their number.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def prepare_worker(worker_id: int, *, parent: int) -> None:
    """Initialise a worker process (``worker_init_fn`` of torch's loader, with ``parent`` bound).

    A scheduler or a terminal signals the whole process group. The main process decides what to do about it and still
    needs its batches meanwhile, so workers ignore what it handles, and SIGTERM unless it comes from the main process.
    A thread ends the worker within half a second of the parent's death, also by SIGKILL: torch's own watchdog looks
    only every five seconds, only between batches, and can hang on a full pipe.
    """
    torch.set_num_threads(1)
    if cv2.getNumThreads() != 1:  # in a spawned process; for forked ones see one_opencv_thread
        cv2.setNumThreads(1)
    ignore_group_signals()
    threading.Thread(target=_watch, args=(parent,), name=f"safmn-watch-{worker_id}", daemon=True).start()
