"""Files that are complete or absent: written beside their place, flushed to the disk, then renamed into it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp-"  # prefix of everything unfinished


def flush_file(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: Path) -> None:
    """Wait until the directory's entries (a rename into it, say) are on the disk."""
    flush_file(path)


@contextlib.contextmanager
def atomic_path(path: Path | str, *, flush: bool = True) -> Iterator[Path]:
    """A temporary path in the same directory, with the same ending, that becomes ``path`` when the block succeeds.

    On an exception the temporary file is removed and what stood at ``path`` before stays as it was. Without ``flush``
    nothing waits for the disk: for the many small files that are cheap to make again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by the process's number alone: two containers that share a folder may both be process 1.
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        if flush:
            flush_file(temporary)
        os.replace(temporary, path)
        if flush:
            flush_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path | str, content: bytes | str, *, flush: bool = True) -> None:
    """Write a whole file atomically (text as UTF-8); ``flush`` as in :func:`atomic_path`."""
    with atomic_path(path, flush=flush) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def set_aside(path: Path) -> Path:
    """Rename a folder or file to ``<name>_archived_<time>``, as BasicSR does, and return that; nothing is lost."""
    name = f"{path.name}_archived_{time.strftime('%Y%m%d_%H%M%S')}"
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    aside = next(other for other in map(path.with_name, names) if not other.exists())
    return path.rename(aside)


def take_lock(path: Path) -> BinaryIO | None:
    """The file at ``path``, made if it is not there, which no other process may take until it is closed.

    The lock ends with this process, however it ends: it is a record lock, which unlike flock's does not stay with the
    workers that were forked. Closing any other descriptor of the file in this process gives it up.

    Returns:
        The file, open for reading and writing, without a buffer, so that what is written survives a kill; None where
        another process has it.
    """
    file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)  # noqa: SIM115 - the caller's
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # another process, done with it meanwhile, may have renamed or removed it
        taken = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, PermissionError):
        taken = False
    if not taken:
        file.close()
    return file if taken else None  # type: ignore[return-value]


def cache_folder() -> Path:
    """Where what takes long to build is kept between runs: ``$SAFMN_CACHE``, or ``safmn`` in the user's cache.

    A user without a home (in a container, say) gets a folder of its own among the temporary files.
    """
    if given := os.environ.get("SAFMN_CACHE"):
        return Path(given)
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "safmn"
    try:
        return Path.home() / ".cache" / "safmn"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"safmn-{os.getuid()}"
