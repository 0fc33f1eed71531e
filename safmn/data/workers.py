"""Set up the loader's worker processes, and explain their deaths.

A worker uses one thread, ignores signals to the process group, and ends when its parent ends.
"""

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
from safmn.system.memory import more_shared_memory, shared_memory
from safmn.system.signals import ignore_group_signals, wait_for_sigterm

_POLL_SECONDS = 0.5


def _watch(parent: int) -> None:
    """End the worker as soon as the parent is gone or sends SIGTERM. Runs in a thread of the worker."""
    process = multiprocessing.parent_process()  # also correct if a fork server, not the parent, forked the worker
    while process is not None and process.is_alive():
        if wait_for_sigterm(parent, _POLL_SECONDS):
            break
    os._exit(0)


_CRASHES = ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE")
_WINDOWS_CRASH = 0x8000_0000  # exit statuses from here on are those of crashes
_IN_A_LIBRARY = (
    "in a library: while it decoded an image, or in other code that the data set calls. With num_worker_per_gpu: 0 the "
    "run itself crashes at the same image, and python -X faulthandler shows where."
)
_START_AGAIN = "Start again with --auto_resume."


def died(error: Exception, exit_code: int | None = None) -> DataError:
    """Return the error to raise for a dead worker; its message says how the worker ended and what to do.

    Args:
        error: the error that reports the death.
        exit_code: exit code of the worker, as multiprocessing gives it (negative for a signal); None: read it from the
            message of ``error``.
    """
    text = " ".join(str(error).split())
    if exit_code is None:
        exit_code = _exit_code(text)
    return DataError(f"a loader worker {_how(exit_code, text)} {_START_AGAIN}")


def _exit_code(text: str) -> int | None:
    """Return the exit code of a worker that torch's message gives; None if it gives none."""
    if found := re.search(r"exit code (\d+)", text):
        return int(found[1])
    if found := re.search(r"killed by signal: ([^.]+)\.", text):
        names = {signal.strsignal(number): number for number in signal.valid_signals()}
        return -names[found[1]] if found[1] in names else None
    return None


def _how(exit_code: int | None, text: str) -> str:
    """Describe how a worker ended and what the user can do."""
    if exit_code is None:
        return f"died ({text}). If it printed a message, that is above."
    if exit_code >= _WINDOWS_CRASH:
        return f"crashed (Windows' status {exit_code:#x}) {_IN_A_LIBRARY}"
    if exit_code >= 0:
        return (
            f"ended by itself with exit status {exit_code}: the data set, or a module that `imports` names, called "
            "exit or could not be started in a separate process; its message is above. Set num_worker_per_gpu: 0 to "
            "load without workers."
        )
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    if name == "SIGKILL":
        return (
            "was killed (SIGKILL): by a user, or by the system because memory ran out (see `dmesg`). To use less "
            "memory, lower datasets.train.num_worker_per_gpu, batch_size_per_gpu or the size of the images."
        )
    if name == "SIGBUS":
        return (
            f"was killed (SIGBUS): a file was truncated while the worker read it, or {shared_memory()} is full. "
            f"{more_shared_memory()}, or lower num_worker_per_gpu."
        )
    if name in _CRASHES:
        return f"crashed ({name}) {_IN_A_LIBRARY}"
    return f"was ended by {name}, which another process sent."


def is_death(error: Exception) -> bool:
    """Whether ``error`` is torch's error about a dead worker."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def exit_code_of(workers: Iterable[Any]) -> int | None:
    """Return the exit code of the first worker that ended with a code other than 0; None if there is none."""
    return next((worker.exitcode for worker in workers if worker.exitcode), None)


@contextmanager
def explain_death() -> Iterator[None]:
    """Turn torch's error about a dead worker into a :class:`DataError`.

    torch raises that error from a signal handler, at any point of the main thread. So wrap all code that runs while
    workers exist.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_death(error):
            raise
        raise died(error) from error


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Stop OpenCV's thread pool while this context is active, so that the process can fork workers.

    A forked child inherits the pool but not its threads, and waits for them endlessly when it changes their number.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def prepare_worker(worker_id: int, *, parent: int) -> None:
    """Initialise a worker process (``worker_init_fn`` of torch's loader, with ``parent`` bound).

    A scheduler or a terminal signals the whole process group. The main process handles these signals and still needs
    batches meanwhile, so workers ignore them, and accept SIGTERM only from the main process. A thread ends the worker
    within half a second of the parent's death, even by SIGKILL: torch's watchdog checks only every five seconds, only
    between batches, and can hang on a full pipe.
    """
    torch.set_num_threads(1)
    if cv2.getNumThreads() != 1:  # in spawned processes; for forked ones see one_opencv_thread
        cv2.setNumThreads(1)
    ignore_group_signals()
    threading.Thread(target=_watch, args=(parent,), name=f"safmn-watch-{worker_id}", daemon=True).start()
