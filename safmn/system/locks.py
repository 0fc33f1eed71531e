"""Locks between processes, held in files, by the ``filelock`` package."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from filelock import FileLock, Timeout

from safmn.system.files import write_atomically


class ProcessLock:
    """A lock that one process at a time can hold. It ends with the process, however that ends; forks do not hold it.

    The description of the process that holds it is in a second file: on Windows a locked file cannot be read.

    Args:
        path: the lock file. Its folder is created if necessary. Both files are removed at the release.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = path.with_name(f"{path.name}-owner")
        self._lock = FileLock(path, thread_local=False)

    def take(self) -> bool:
        """Take the lock and return True; return False at once if another process or lock object holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        write_atomically(self._owner, f"process {os.getpid()} on {platform.node()}", flush=False)
        return True

    @property
    def owner(self) -> str:
        """The process that holds the lock, such as ``process 123 on myhost``."""
        try:
            return self._owner.read_text(encoding="utf-8") or "another process"
        except OSError:
            return "another process"

    def release(self) -> None:
        """Let another process take the lock. Does nothing if this object does not hold it."""
        if not self._lock.is_locked:
            return
        self._owner.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Windows does not remove an open file; filelock removes it there
            self.path.unlink()  # a process that waits with the old file open notices, and opens the new one
        self._lock.release()
