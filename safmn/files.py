"""Files that are complete or absent: written beside their place, flushed to the disk, then renamed into it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

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
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
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


def cache_folder() -> Path:
    """Where what takes long to build is kept between runs: ``$SAFMN_CACHE``, or ``safmn`` in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SAFMN_CACHE") or Path(root) / "safmn")
