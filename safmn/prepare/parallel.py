"""Process many images in threads, with a progress bar. Decoding, resizing and encoding release Python's lock."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import FrameType
from typing import TypeVar

import cv2
import torch
from tqdm import tqdm

from safmn.errors import EXIT_FAILED, DataError
from safmn.system.console import one_line, say, say_line

Item = TypeVar("Item")
Result = TypeVar("Result")

_SHOWN_FAILURES = 10
_SECONDS_BETWEEN_LINES = 20.0


@dataclass
class Outcome:
    """The result for all items: the number of files made, the number already there, and the failure messages."""

    made: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)

    def report(self, title: str) -> int:
        """Print a summary line and the failures; return the exit status: 0, or 1 if something failed."""
        say_line(f"{title}: {self.made} made, {self.kept} already there, {len(self.failures)} failed")
        for message in self.failures[:_SHOWN_FAILURES]:
            say_line(f"  {message}")
        if len(self.failures) > _SHOWN_FAILURES:
            say(f"  ... and {len(self.failures) - _SHOWN_FAILURES} more")
        return EXIT_FAILED if self.failures else 0


def default_jobs() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(work: Callable[[Item], tuple[int, int]], items: Sequence[Item], *, jobs: int, description: str) -> Outcome:
    """Run ``work`` on every item; it returns how many files it made and how many it kept.

    A DataError fails only its item and is collected. After any other error or Ctrl-C, the running items finish, no new
    ones start, and the error is raised.
    """
    outcome = Outcome()
    with contextlib.closing(in_order(work, items, jobs)) as results:
        for result in progress(results, len(items), description):
            try:
                made, kept = result()
            except DataError as error:
                outcome.failures.append(str(error))
                continue
            outcome.made += made
            outcome.kept += kept
    return outcome


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int
) -> Generator[Callable[[], Result], None, None]:
    """Yield for each item, in order, a function that returns (or raises) what ``work`` returned (or raised).

    When the generator is closed (``contextlib.closing``), the running items finish and no new ones start. Ctrl-C raises
    KeyboardInterrupt only between two items, so that it cannot leave the locks of the thread pool held.
    """
    waiting: deque[Future[Result]] = deque()
    with _CtrlC() as ctrl_c, _one_thread_per_library(), ThreadPoolExecutor(max(jobs, 1)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 4 * max(jobs, 1):  # limits the finished results that wait
                    yield waiting.popleft().result
                    ctrl_c.check()
            while waiting:
                yield waiting.popleft().result
                ctrl_c.check()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def progress(items: Iterable[Item], total: int, description: str, unit: str = "image") -> Iterator[Item]:
    """Yield the items while showing progress: a tqdm bar on a terminal, a plain line now and then elsewhere."""
    bar = tqdm(items, total=total, desc=one_line(description), unit=unit, disable=None)
    last = time.monotonic()
    for number, item in enumerate(bar, start=1):
        yield item
        if bar.disable and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say_line(f"{description}: {number} of {total} {unit}s")


class _CtrlC:
    """Context that records Ctrl-C until :meth:`check` raises it; a second Ctrl-C raises immediately."""

    def __init__(self) -> None:
        self._pressed = False
        self._in_main_thread = threading.current_thread() is threading.main_thread()  # where signals are handled

    def __enter__(self) -> _CtrlC:
        if self._in_main_thread:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._pressed:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.check()
        self._pressed = True


@contextlib.contextmanager
def _one_thread_per_library() -> Iterator[None]:
    """Limit OpenCV and PyTorch to one thread each within the block: the images already run in parallel."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
