"""Share errors between the ranks of a job, so that no rank waits for one that has stopped.

There are two ways. If every rank can still answer (before a step, after a checkpoint), all ranks raise the error of one
rank: :func:`agreed`, :func:`raise_together`. Otherwise (in the middle of a step), a rank writes its error to the job's
key-value store and leaves. The collective calls of the other ranks then fail, and these ranks read the error:
:func:`together`, :func:`explain_lost_ranks`.

Nothing here has an effect in a single process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist

from safmn.errors import EXIT_FAILED, EXIT_USER_ERROR, RankError, UserError, status_after
from safmn.own_code import described, is_from_own_code
from safmn.runtime import distributed
from safmn.system.memory import OUT_OF_MEMORY

T = TypeVar("T")

_GRACE = 5.0  # seconds to wait for the error note of a lost rank
_SIGNS_OF_A_LOST_RANK = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "connection refused",
    "timed out",
    "timeout",
    "failed to recv",
    "failed to send",
    "communicator was aborted",
    "remote process exited",
)


def describe(error: BaseException) -> str:
    """Return an error's message for the other ranks: no traceback, but the class if it is not a user's mistake."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:  # torch passes on the traceback of a loader worker
        lines = text.splitlines()
        notes = itertools.takewhile(lambda line: not line.startswith((" ", "Traceback")), reversed(lines))
        text = "; ".join(reversed([line for line in notes if line.strip()])) or lines[-1]
    elif not isinstance(error, (UserError, OSError)):
        plain = f"{type(error).__name__}: {text}" if text else type(error).__name__
        text = described(error) if is_from_own_code(error) else plain
    return "; ".join([text, *(note for note in getattr(error, "__notes__", []) if note not in text)])


def _status(error: BaseException) -> int:
    if isinstance(error, UserError):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return status_after(error)
    return EXIT_USER_ERROR if isinstance(error, OSError) else EXIT_FAILED


def _note(error: BaseException) -> dict[str, Any]:
    fatal = not isinstance(error, (UserError, OSError, *OUT_OF_MEMORY))
    return {"rank": dist.get_rank(), "status": _status(error), "fatal": fatal, "text": describe(error)}


def _as_error(note: dict[str, Any]) -> RankError:
    return RankError(f"rank {note['rank']} stopped: {note['text']}", status=note["status"], fatal=note["fatal"])


def raise_together(error: Exception | None) -> None:
    """Raise ``error`` on this rank, and a RankError that quotes it on the other ranks.

    Every rank must call this function at the same point.

    Args:
        error: this rank's error; None if it has none.
    """
    if not distributed.is_active():
        if error is not None:
            raise error
        return
    notes = distributed.on_all_ranks(None if error is None else _note(error))
    if error is not None:
        raise error
    for note in notes:
        if note is not None:
            raise _as_error(note)


class _Fetched(Generic[T]):
    """One item, or the error raised instead; the ranks exchange in the background whether there was an error."""

    def __init__(self, items: Iterator[T]) -> None:
        self.item: T | None = None
        self.error: Exception | None = None
        self.at_end = False
        try:
            self.item = next(items)
        except StopIteration:
            self.at_end = True
            return
        except Exception as error:
            self.error = error
        self._failed = torch.tensor(float(self.error is not None))
        self._work = dist.all_reduce(self._failed, dist.ReduceOp.MAX, group=distributed.control_group(), async_op=True)

    def settle(self) -> None:
        """Raise the error if any rank has one."""
        self._work.wait()
        if self._failed:
            raise_together(self.error)


def agreed(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; if one rank has an error, all ranks raise it before any of them gets the item.

    Every rank must have the same number of items. The next item is fetched ahead, so that the ranks agree on it while
    they process the current one.
    """
    if not distributed.is_active():
        yield from items
        return
    upcoming = _Fetched(items)
    while not upcoming.at_end:
        upcoming.settle()
        item, upcoming = upcoming.item, _Fetched(items)
        yield item  # type: ignore[misc]  # without an error there is an item


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Context for the joint work of the ranks: share this rank's error with the others and explain theirs."""
    if not distributed.is_active():
        yield
        return
    _write("process", f"process {os.getpid()} on {os.uname().nodename}" if hasattr(os, "uname") else str(os.getpid()))
    try:
        with explain_lost_ranks():
            yield
    except RankError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        _write("error", json.dumps(_note(error)))
        raise


@contextlib.contextmanager
def explain_lost_ranks() -> Iterator[None]:
    """Context that turns an error of a collective call with a lost rank into a RankError.

    It waits a few seconds for the error note of that rank, to name the rank and the reason.
    """
    try:
        yield
    except RuntimeError as error:
        if not (distributed.is_active() and _is_of_a_lost_rank(error)):
            raise
        raise _why() from error


def _is_of_a_lost_rank(error: RuntimeError) -> bool:
    text = str(error).lower()
    of_torch = isinstance(error, dist.DistError) or any(name in text for name in ("gloo", "nccl", "tcpstore", "socket"))
    return of_torch and any(sign in text for sign in _SIGNS_OF_A_LOST_RANK)


def _why() -> RankError:
    """Return the error that a lost rank noted, or an error that says that it noted nothing."""
    _write("survivor", "1")
    others = [rank for rank in range(dist.get_world_size()) if rank != dist.get_rank()]
    deadline = time.monotonic() + _GRACE
    while True:
        for rank in others:
            if note := _read("error", rank):
                return _as_error(json.loads(note))
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    silent = [rank for rank in others if not _read("survivor", rank)]
    names = [f"rank {rank} ({_read('process', rank) or 'process unknown'})" for rank in silent]
    if not names:
        return RankError("the connection between the ranks broke", status=EXIT_FAILED)
    return RankError(
        f"{' or '.join(names)} ended without an error message: it was killed (SIGKILL, for example by the system when "
        "memory ran out), or its machine or the connection to it failed",
        status=EXIT_FAILED,
    )


def _key(kind: str, rank: int) -> str:
    return f"safmn/{distributed.start_number()}/{kind}/{rank}"


def _write(kind: str, text: str) -> None:
    """Write a note for the other ranks. Ignore errors: the store may be gone with rank 0."""
    with contextlib.suppress(Exception):
        distributed.store().set(_key(kind, dist.get_rank()), text)


def _read(kind: str, rank: int) -> str:
    """Return a rank's note; empty if there is none or the store is gone."""
    with contextlib.suppress(Exception):
        if distributed.store().check([_key(kind, rank)]):
            return str(distributed.store().get(_key(kind, rank)).decode())
    return ""
