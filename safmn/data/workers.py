"""Loader worker processes that behave: one thread each, deaf to group signals, never outliving their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

from safmn.errors import DataError

_POLL_SECONDS = 0.5


def _watch(parent: int) -> None:
    """Leave as soon as the parent is gone or asks for it with SIGTERM. Runs in a thread of the worker."""
    process = multiprocessing.parent_process()  # also right where a fork server, not the parent, started the worker
    while process is not None and process.is_alive():
        if hasattr(signal, "sigtimedwait"):
            received = signal.sigtimedwait({signal.SIGTERM}, _POLL_SECONDS)
            if received is not None and received.si_pid == parent:
                break
        else:
            time.sleep(_POLL_SECONDS)
    os._exit(0)


def died(error: Exception) -> DataError:
    """The error to raise where ``error`` says that a worker is gone."""
    return DataError(
        f"a loader worker died ({str(error).strip()}). It probably ran out of memory: lower "
        "datasets.train.num_worker_per_gpu, batch_size_per_gpu or the images' size. Start again with --auto_resume."
    )


def is_death(error: Exception) -> bool:
    """Whether an error is torch's about a dead worker."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


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
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_watch, args=(parent,), name=f"safmn-watch-{worker_id}", daemon=True).start()
