"""Compile the package's C++ sources for this machine, once, into the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from safmn.system.files import atomic_path, cache_folder

logger = logging.getLogger(__name__)

_HEADERS = Path(__file__).parent
_COMPILERS = ("g++", "clang++", "c++")
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-Wno-psabi")

Loaded = TypeVar("Loaded")


def compiler() -> str | None:
    """Return the C++ compiler: ``$CXX``, or else the first that is installed; None if there is none.

    On Windows only ``$CXX`` counts: GCC for Windows does not align AVX vectors on the stack (its bug 54412), so what it
    builds crashes on some runs.
    """
    for name in (os.environ.get("CXX", ""), *(() if platform.system() == "Windows" else _COMPILERS)):
        found = shutil.which(name) if name else None
        if found and not _is_stub(found):
            return found
    return None


def _is_stub(program: str) -> bool:
    """Return whether this is a program of macOS that asks to install the developer tools instead of compiling."""
    if platform.system() != "Darwin" or not program.startswith("/usr/bin/"):
        return False
    return subprocess.run(["xcode-select", "-p"], capture_output=True).returncode != 0


def how_to_get_a_compiler() -> str:
    """Return what to say to a user for whom :func:`compiler` finds none."""
    if platform.system() == "Darwin":
        return "run xcode-select --install"
    if platform.system() == "Windows":
        return "on Windows none is used, because code of g++ for Windows may crash"
    return "install g++ or clang++ (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++)"


def machine_flags() -> tuple[str, ...]:
    """Return the compiler flags for exactly this processor.

    Nothing is needed for Macs with ARM processors: Apple's compiler builds for the M1 by default, NEON is part of every
    64-bit ARM processor, and not every compiler there knows "native".
    """
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",) if machine == "aarch64" else ()


def library_path(source: Path, flags: Sequence[str], folder: Path) -> Path:
    """Return the path in ``folder`` of the library of ``source``, compiled with ``flags``.

    The name contains a hash of the source, the shared headers, the command, the compiler's version and the processor,
    because different machines may share a home folder.
    """
    command = _command(flags)
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    recipe = "\n".join(
        [*command, version, _processor(), *(file.read_text() for file in (source, *sorted(_HEADERS.glob("*.h"))))]
    )
    return folder / f"{source.stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"


def build(source: Path, flags: Sequence[str], folder: Path) -> Path:
    """Return the library of ``source``; compile it with ``flags`` (some seconds) unless it is already in ``folder``.

    Processes that build at the same time are safe: each one writes the same complete file.

    Raises:
        OSError: the compiler failed (the message contains its output), or ``folder`` cannot be written.
    """
    library = library_path(source, flags, folder)
    if not library.exists():
        logger.info("Compiling %s for this processor (only once): %s", source.name, library)
        with atomic_path(library) as temporary:
            command = [*_command(flags), f"-I{_HEADERS}", str(source), "-o", str(temporary)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"the native kernels do not compile: {' '.join(command)}: {done.stderr.strip()[:500]}")
    return library


def _command(flags: Sequence[str]) -> list[str]:
    return [compiler() or "g++", *_FLAGS, *flags]


def _processor() -> str:
    """Return a description of the processor, on which -march=native depends."""
    keys = ("model name", "flags", "CPU part", "Features")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(next((line for line in lines if line.startswith(key)), "") for key in keys)


def load_for_this_machine(source: Path, load: Callable[[Path], Loaded], flags: Sequence[str] = ()) -> Loaded:
    """Load the library of ``source`` from the user's cache, and build it first if needed.

    If the cache cannot be written, the library is built for this process only.

    Args:
        source: a C++ file.
        load: opens the library at a path.
        flags: further compiler flags, added after those for the processor.

    Raises:
        OSError: the library cannot be built.
    """
    folder, flags = cache_folder() / "native", (*machine_flags(), *flags)
    if os.path.exists(library_path(source, flags, folder)) or _writable(folder):
        return load(build(source, flags, folder))
    logger.warning("%s cannot be written, so the native kernels are compiled for this process only.", folder)
    with tempfile.TemporaryDirectory(prefix="safmn-", ignore_cleanup_errors=True) as temporary:
        return load(build(source, flags, Path(temporary)))


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
