"""Builds a C++ source of the package for this machine, once, into the user's cache."""

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
    """The C++ compiler to build with: ``$CXX`` or the first that is installed; None where there is none."""
    for name in (os.environ.get("CXX", ""), *_COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def machine_flags() -> tuple[str, ...]:
    """Flags for exactly this processor."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",)


def library_path(source: Path, flags: Sequence[str], folder: Path) -> Path:
    """Where the library of ``source`` for ``flags`` belongs.

    Its name is a hash of the source with the shared headers, the command, the compiler's version and the processor: a
    home folder may be shared by different machines.
    """
    command = _command(flags)
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    recipe = "\n".join(
        [*command, version, _processor(), *(file.read_text() for file in (source, *sorted(_HEADERS.glob("*.h"))))]
    )
    return folder / f"{source.stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"


def build(source: Path, flags: Sequence[str], folder: Path) -> Path:
    """The library of ``source`` for ``flags``, compiled (some seconds) unless ``folder`` holds it already.

    Processes that build at the same time each put the same whole file in its place.

    Raises:
        OSError: the compiler failed (the message holds what it said), or ``folder`` cannot be written.
    """
    library = library_path(source, flags, folder)
    if not library.exists():
        logger.info("Compiling %s for this processor, once: %s", source.name, library)
        with atomic_path(library) as temporary:
            command = [*_command(flags), f"-I{_HEADERS}", str(source), "-o", str(temporary)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"the native kernels do not compile: {' '.join(command)}: {done.stderr.strip()[:500]}")
    return library


def _command(flags: Sequence[str]) -> list[str]:
    return [compiler() or "g++", *_FLAGS, *flags]


def _processor() -> str:
    """What -march=native depends on."""
    keys = ("model name", "flags", "CPU part", "Features")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(next((line for line in lines if line.startswith(key)), "") for key in keys)


def load_for_this_machine(source: Path, load: Callable[[Path], Loaded], flags: Sequence[str] = ()) -> Loaded:
    """``load`` of the library of ``source``, from the user's cache or, where that cannot be written, built for this
    process alone.

    Args:
        source: of C++.
        load: opens the library at a path.
        flags: more of the compiler's, after those of the processor.

    Raises:
        OSError: it cannot be built.
    """
    folder, flags = cache_folder() / "native", (*machine_flags(), *flags)
    if os.path.exists(library_path(source, flags, folder)) or _writable(folder):
        return load(build(source, flags, folder))
    logger.warning("%s cannot be written: the native kernels are compiled for this process alone.", folder)
    with tempfile.TemporaryDirectory(prefix="safmn-", ignore_cleanup_errors=True) as temporary:
        return load(build(source, flags, Path(temporary)))


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
