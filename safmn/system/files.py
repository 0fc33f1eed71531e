"""Write files atomically: write to a temporary name, flush to the disk, then rename."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs

TEMPORARY = ".tmp-"  # prefix of all unfinished files
_FORBIDDEN = frozenset('<>:"/\\|?*')  # in names of files on Windows
_DEVICES = frozenset(
    ("con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in "123456789¹²³"))
)
_PATIENCE = 2.0  # seconds to wait for another program to close a file, on Windows


def flush_file(path: Path) -> None:
    """Wait until the content of the file is on the disk."""
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: Path) -> None:
    """Wait until the entries of the directory, for example a rename, are on the disk. Windows has no such call."""
    if sys.platform != "win32":
        flush_file(path)


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder over ``target``.

    Windows refuses while a program, such as a virus scanner or a viewer, has one of them open. This waits for it.

    Raises:
        PermissionError: the file is still open after two seconds; names it.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if sys.platform != "win32":
                raise
            if time.monotonic() > deadline:
                message = "another program has the file open; close it"
                raise PermissionError(error.errno, message, str(target)) from error
            time.sleep(0.05)


def windows_mistake(name: str) -> str | None:
    """Return why Windows has no file or folder of this name, or None if it can have one.

    Names of devices are refused with any ending: what is written to ``aux.png`` is lost.

    >>> windows_mistake("aux.png")
    "'aux.png' is no name for a file on Windows: AUX is a device"
    """
    bad = sorted({character for character in name if character in _FORBIDDEN or ord(character) < 32})
    if bad:
        reason = f"it contains {' '.join(map(repr, bad))}"
    elif name.partition(".")[0].rstrip(" ").lower() in _DEVICES:
        reason = f"{name.partition('.')[0].rstrip(' ').upper()} is a device"
    elif name.endswith((".", " ")):
        reason = "it ends in a dot or a space, which Windows drops"
    else:
        return None
    return f"{name!r} is no name for a file on Windows: {reason}"


def check_name(path: Path) -> None:
    """Refuse, on Windows, a path whose last part cannot be the name of a file or folder there.

    Raises:
        OSError: names the path and the reason.
    """
    mistake = windows_mistake(path.name) if sys.platform == "win32" else None
    if mistake:
        raise OSError(errno.EINVAL, f"{mistake}; choose another", str(path))


@contextlib.contextmanager
def atomic_path(path: Path | str, *, flush: bool = True, flush_folder: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same directory, with the same ending, that becomes ``path`` if the block succeeds.

    After an exception the temporary file is removed and an existing ``path`` is unchanged. Without ``flush`` nothing
    waits for the disk, which suits many small files that are cheap to make again. Without ``flush_folder`` a power
    failure may undo the renaming, but never leaves an incomplete file.

    Raises:
        OSError: the file cannot be written, or Windows allows no file of this name.
    """
    path = Path(path)
    check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process number alone is not unique: two containers that share a folder may both be process 1.
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        if flush:
            flush_file(temporary)
        replace(temporary, path)
        if flush and flush_folder:
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
    replace(path, aside)
    return aside


def cache_folder() -> Path:
    """Return the folder for files that take long to build: ``$SAFMN_CACHE``, or ``safmn`` in the user's cache folder.

    A user without a home, for example in a container, gets a separate folder among the temporary files.
    """
    if given := os.environ.get("SAFMN_CACHE"):
        return Path(given)
    with contextlib.suppress(RuntimeError):  # newer versions of platformdirs: there is no home
        folder = platformdirs.user_cache_path("safmn", appauthor=False)
        if folder.is_absolute():  # older ones return "~/.cache/safmn" as it is
            return folder
    if sys.platform == "win32":
        return Path(tempfile.gettempdir()) / "safmn"  # the folder of temporary files is the user's own
    return Path(tempfile.gettempdir()) / f"safmn-{os.getuid()}"
