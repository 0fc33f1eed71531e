"""Compile the package's C++ sources for this machine, once, into the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from safmn.kernels.cpu.compilation import HEADERS, SOURCES, command, compile_library, compiler, machine_flags
from safmn.kernels.cpu.shipped import shipped_library
from safmn.system.files import atomic_path, cache_folder

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


def can_load() -> bool:
    """Return whether the kernels come with the package for this processor, or can be compiled here."""
    return compiler() is not None or all(shipped_library(source) is not None for source in SOURCES)


def library_path(source: Path, flags: Sequence[str], folder: Path) -> Path:
    """Return the path in ``folder`` of the library of ``source``, compiled with ``flags``.

    The name contains a hash of the source, the shared headers, the command, the compiler's version and the processor,
    because different machines may share a home folder.
    """
    line = command(flags)
    version = subprocess.run([line[0], "--version"], capture_output=True, encoding="utf-8", errors="replace").stdout
    sources = (file.read_text(encoding="utf-8") for file in (source, *sorted(HEADERS.glob("*.h"))))
    recipe = "\n".join([*line, version, processor(), *sources])
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
            compile_library(source, flags, temporary)
    return library


def processor() -> str:
    """Return a description of the processor, on which -march=native depends."""
    keys = ("model name", "flags", "CPU part", "Features")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(next((line for line in lines if line.startswith(key)), "") for key in keys)


def load_for_this_machine(source: Path, load: Callable[[Path], Loaded], *, narrow: bool = False) -> Loaded:
    """Load the library of ``source``: the one of the wheel, or else one from the user's cache, built first if needed.

    If the cache cannot be written, the library is built for this process only.

    Args:
        source: a C++ file.
        load: opens the library at a path.
        narrow: do not use AVX-512.

    Raises:
        OSError: the library cannot be built.
    """
    shipped = shipped_library(source, narrow=narrow)
    if shipped is not None:
        return load(shipped)
    folder, flags = cache_folder() / "native", (*machine_flags(), *(("-mno-avx512f",) if narrow else ()))
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
