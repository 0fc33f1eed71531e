"""Compute small images several at once, each with one thread: two threads gain little within a thumbnail."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

_SMALL = 2**18  # LR pixels; larger images keep all threads busy


class Computing(Protocol):
    """What :class:`Parallel` asks of an upscaler; see :class:`safmn.Upscaler`."""

    def side_by_side(self, calls: int) -> int:
        """Return the largest number of LR pixels of images that may be computed ``calls`` at once; 0: none."""


class Parallel:
    """Computes small images in threads of its own, one for each of torch's threads.

    While they compute, torch uses one thread for each. Large images are computed by the caller, with all threads, after
    :meth:`settle`.
    """

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.threads, "safmn-compute")
        self._running: set[Future[Any]] = set()
        self._limits: dict[int, int] = {}

    def __enter__(self) -> Parallel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)  # what has begun is finished
        torch.set_num_threads(self.threads)

    def takes(self, upscaler: Computing, pixels: int) -> bool:
        """Return whether an image of this many LR pixels is to be computed with :meth:`start`."""
        if self.threads == 1 or pixels > _SMALL:
            return False
        limit = self._limits.get(id(upscaler), 0)
        if not limit:  # also asked again after the first image, on which the back end is chosen
            limit = self._limits[id(upscaler)] = upscaler.side_by_side(self.threads)
        return pixels <= limit

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Begin to compute a small image; return its result to come."""

        def alone() -> T:
            torch.set_num_threads(1)  # of this thread; matrix products have one setting for all threads
            return work()

        future = self._pool.submit(alone)
        self._running = {other for other in self._running if not other.done()} | {future}
        return future

    def settle(self) -> None:
        """Wait until all small images are computed, and return to all threads for what the caller computes."""
        if self._running:
            wait(self._running)
            self._running.clear()
            torch.set_num_threads(self.threads)
