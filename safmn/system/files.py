"""Write files atomically: write to a temporary name, flush to the disk, then rename. Also lock files."""

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

TEMPORARY = ".tmp-"  # prefix of all unfinished files


def flush_file(path: Path) -> None:
    """Wait until the content of the file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: Path) -> None:
    """Wait until the entries of the directory, for example a rename, are on the disk."""
    flush_file(path)


@contextlib.contextmanager
def atomic_path(path: Path | str, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same directory, with the same ending, that becomes ``path`` if the block succeeds.

    After an exception the temporary file is removed and an existing ``path`` is unchanged. Without ``flush`` nothing
    waits for the disk, which suits many small files that are cheap to make again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process number alone is not unique: two containers that share a folder may both be process 1.
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
    """Write a file atomically (text as UTF-8); see :func:`atomic_path` for ``flush``."""
    with atomic_path(path, flush=flush) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def set_aside(path: Path) -> Path:
    """Rename a folder or file to ``<name>_archived_<time>``, as BasicSR does, and return the new path."""
    name = f"{path.name}_archived_{time.strftime('%Y%m%d_%H%M%S')}"
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    aside = next(other for other in map(path.with_name, names) if not other.exists())
    return path.rename(aside)


def take_lock(path: Path) -> BinaryIO | None:
    """Lock the file at ``path`` for this process until it is closed; create it if necessary.

    The lock always ends with this process: it is a record lock, which forked workers do not inherit, unlike a flock
    lock. Closing any other descriptor of the file in this process releases it.

    Returns:
        The file, open for reading and writing, unbuffered, so that written data survives a kill; None if another
        process has the lock.
    """
    file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)  # noqa: SIM115 - the caller closes it
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have finished in the meantime and renamed or removed the file.
        taken = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, PermissionError):
        taken = False
    if not taken:
        file.close()
    return file if taken else None  # type: ignore[return-value]


def cache_folder() -> Path:
    """Return the folder for files that take long to build: ``$SAFMN_CACHE``, or ``safmn`` in the user's cache folder.

    A user without a home, for example in a container, gets a separate folder among the temporary files.
    """
    if given := os.environ.get("SAFMN_CACHE"):
        return Path(given)
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "safmn"
    try:
        return Path.home() / ".cache" / "safmn"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"safmn-{os.getuid()}"
