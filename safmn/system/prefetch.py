"""Run an iterator ahead in a separate thread, so that reading, computing and writing overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class _End(Generic[T]):
    """The last object that the thread sends: the end, with the error that caused it, if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetch(items: Iterable[T], depth: int = 1) -> Generator[T, None, None]:
    """Yield the items in order while a thread makes the next ``depth`` items; raise the thread's exceptions here.

    Closing the generator early waits for the item that the thread is making.
    """
    ready: queue.Queue[T | _End[T]] = queue.Queue(depth)
    stopped = threading.Event()

    def offer(item: T | _End[T]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                offer(item)
                if stopped.is_set():
                    return
            offer(_End())
        except BaseException as error:
            offer(_End(error))

    thread = threading.Thread(target=run, daemon=True, name="safmn-prefetch")
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        thread.join()
