"""What objects need that many threads call at once, also in processes that were forked from this one."""

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
    """A lock that its thread may take again, and that is free in a process forked while another thread had it."""

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
        """Make it free, whoever had it."""
        self._lock = threading.RLock()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()

BUILDING = Lock()
"""Held while a back end is made: torch's exporter and compiler keep global state, and serve one thread at a time."""


class SharedLock:
    """A lock that any number of readers hold at the same time, or one writer alone. A writer may also read."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._readers = 0
        self._writer: int | None = None
        _shared_locks.add(self)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Hold it together with other readers."""
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
        """Hold it alone. New readers wait from now on."""
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
        """Make it free, whoever had it."""
        self._changed, self._readers, self._writer = threading.Condition(threading.Lock()), 0, None


_shared_locks: weakref.WeakSet[SharedLock] = weakref.WeakSet()
_kept: weakref.WeakSet[Any] = weakref.WeakSet()


class Pool(Generic[T]):
    """Objects that serve one call at a time: a call takes one that is free, or a new one.

    Args:
        make: gives a new one. Any number of threads may call it at once.
        idle: how many are kept while no call uses them.
    """

    def __init__(self, make: Callable[[], T], idle: int = 8) -> None:
        self._make = make
        self._idle = idle
        self._free: list[T] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[T]:
        """An object that nobody else has. It does not come back when the block raises."""
        try:
            item = self._free.pop()
        except IndexError:
            item = self._make()
        yield item
        if len(self._free) < self._idle:
            self._free.append(item)


class Once:
    """True for the first caller and false for all others, whatever thread they are in."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._done = False

    def __call__(self) -> bool:
        """Whether this is the first call."""
        with self._lock:
            first, self._done = not self._done, True
        return first


# Forks

_forked: int | None = None  # the thread that this process began with, if it was forked


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
    """``function()``, in a new thread where this one's OpenMP team was lost in a fork.

    OpenMP (GNU's) remembers for each thread the threads that help it. A fork copies that memory, but not the helpers,
    and the first parallel loop waits for them for ever. A new thread gets helpers of its own.
    """
    if threading.get_ident() != _forked:
        return function()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # the caller's
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="safmn-forked")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def keep_in_forks(thing: Any) -> None:
    """Let processes that are forked from now on never free an object: its end would wait for threads they do not have.

    Args:
        thing: anything that weak references can point to.
    """
    _kept.add(thing)
