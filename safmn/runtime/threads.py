"""Tools for objects that many threads call at once, including threads of forked processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Lock:
    """A reentrant lock that is always free in a forked process, even if another thread held it during the fork."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Free the lock, whichever thread holds it."""
        self._lock = threading.RLock()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()

BUILDING = Lock()
"""Held while a back end is built: torch's exporter and compiler have global state and allow one thread at a time."""


class SharedLock:
    """A lock for any number of readers or one writer. The writer may also read."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._readers = 0
        self._writer: int | None = None
        _shared_locks.add(self)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        own = self._writer == threading.get_ident()
        if not own:
            with self._changed:
                self._changed.wait_for(lambda: self._writer is None)
                self._readers += 1
        try:
            yield
        finally:
            if not own:
                with self._changed:
                    self._readers -= 1
                    self._changed.notify_all()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock exclusively. New readers wait as soon as the writer does."""
        with self._changed:
            self._changed.wait_for(lambda: self._writer is None)
            self._writer = threading.get_ident()
            self._changed.wait_for(lambda: self._readers == 0)
        try:
            yield
        finally:
            with self._changed:
                self._writer = None
                self._changed.notify_all()

    def renew(self) -> None:
        """Free the lock, whichever threads hold it."""
        self._changed, self._readers, self._writer = threading.Condition(threading.Lock()), 0, None


_shared_locks: weakref.WeakSet[SharedLock] = weakref.WeakSet()
_kept: weakref.WeakSet[Any] = weakref.WeakSet()


class Pool(Generic[T]):
    """A pool of objects that serve one call at a time. A call takes a free object or a new one.

    Args:
        make: returns a new object. Several threads may call it at once.
        idle: the number of unused objects to keep.
    """

    def __init__(self, make: Callable[[], T], idle: int = 8) -> None:
        self._make = make
        self._idle = idle
        self._free: list[T] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[T]:
        """Yield an object for exclusive use. If the block raises, the object does not return to the pool."""
        try:
            item = self._free.pop()
        except IndexError:
            item = self._make()
        yield item
        if len(self._free) < self._idle:
            self._free.append(item)


class Once:
    """A callable that returns True for the first call and False for all later ones, across threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._done = False

    def __call__(self) -> bool:
        """Return whether this is the first call."""
        with self._lock:
            first, self._done = not self._done, True
        return first


# Forks

_forked: int | None = None  # the first thread of this process if it was forked


def _after_fork() -> None:
    global _forked
    _forked = threading.get_ident()
    for lock in list(_locks):
        lock.renew()
    for shared in list(_shared_locks):
        shared.renew()
    for thing in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def in_usable_thread(function: Callable[[], T]) -> T:
    """Return ``function()``; run it in a new thread if a fork lost this thread's OpenMP workers.

    GNU OpenMP stores a team of worker threads for each thread. A fork copies this record but not the workers, and the
    first parallel loop then waits for them endlessly. A new thread gets new workers.
    """
    if threading.get_ident() != _forked:
        return function()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # raised again in the calling thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="safmn-forked")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def keep_in_forks(thing: Any) -> None:
    """Keep an object alive in future forked processes: freeing it there would wait for threads that do not exist.

    Args:
        thing: any object that supports weak references.
    """
    _kept.add(thing)
