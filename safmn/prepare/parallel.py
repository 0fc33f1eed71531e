"""Work on many images at once: in threads (decoding, resizing, encoding release Python's lock), with a bar."""

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
    """What became of the items: how many files were made, how many were there already, and messages of failures."""

    made: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)

    def report(self, title: str) -> int:
        """Say it in a line, the failures below it, and return the exit status: 0, or 1 where something failed."""
        say_line(f"{title}: {self.made} made, {self.kept} already there, {len(self.failures)} failed")
        for message in self.failures[:_SHOWN_FAILURES]:
            say_line(f"  {message}")
        if len(self.failures) > _SHOWN_FAILURES:
            say(f"  ... and {len(self.failures) - _SHOWN_FAILURES} more")
        return EXIT_FAILED if self.failures else 0


def default_jobs() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(work: Callable[[Item], tuple[int, int]], items: Sequence[Item], *, jobs: int, description: str) -> Outcome:
    """Run ``work`` on every item; it returns how many files it made and how many it found in order.

    A DataError fails its item only and is collected. Any other error, and Ctrl-C, lets the running items finish,
    starts no more, and is raised.
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

    Closing the generator (``contextlib.closing``) lets the running items finish and starts no more. Ctrl-C raises
    KeyboardInterrupt between two items, never inside the machinery of threads, whose locks it could leave taken.
    """
    waiting: deque[Future[Result]] = deque()
    with _CtrlC() as ctrl_c, _one_thread_per_library(), ThreadPoolExecutor(max(jobs, 1)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 4 * max(jobs, 1):  # bounds what is finished but not yet taken
                    yield waiting.popleft().result
                    ctrl_c.check()
            while waiting:
                yield waiting.popleft().result
                ctrl_c.check()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def progress(items: Iterable[Item], total: int, description: str, unit: str = "image") -> Iterator[Item]:
    """A tqdm bar on a terminal; elsewhere a plain line now and then."""
    bar = tqdm(items, total=total, desc=one_line(description), unit=unit, disable=None)
    last = time.monotonic()
    for number, item in enumerate(bar, start=1):
        yield item
        if bar.disable and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say_line(f"{description}: {number} of {total} {unit}s")


class _CtrlC:
    """Context in which Ctrl-C is noted, for :meth:`check` to raise; a second Ctrl-C raises at once."""

    def __init__(self) -> None:
        self._pressed = False
        self._in_main_thread = threading.current_thread() is threading.main_thread()  # only there are signals handled

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
    """One thread per image is enough: OpenCV and PyTorch are kept from starting more inside each."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
