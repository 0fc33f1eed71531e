"""Builds ``kernels.cpp`` for this machine, once, and calls it on tensors."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import mmap
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from safmn.files import atomic_path
from safmn.inference.backends.base import cache_folder

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.cpp")
_COMPILERS = ("g++", "clang++", "c++")
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-Wno-psabi")

# The signatures in kernels.cpp: Tensors (addresses), Integers, Distances, Reals. The number of threads comes last.
_T, _I, _D, _R = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t, ctypes.c_float
_SIGNATURES = {
    "to_map": (_T, _T, _I, _I, _I, _D, _D, _I),
    "from_map": (_T, _T, _I, _I, _I, _I, _I),
    "conv": (_T, _T, _T, _I, _I, _I, _I, _T, _T, _I, _I),
    "block": (_T, _T, _I, _I, _I, *[_T] * 10, _I, _T, _T, _T, _T, _R, _I, _I),
}

Argument = Tensor | int | float | None


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


def library_path(flags: Sequence[str], folder: Path) -> Path:
    """Where the library for ``flags`` belongs.

    Its name is a hash of the source, the command, the compiler's version and the processor: a home folder may be shared
    by different machines.
    """
    command = _command(flags)
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    recipe = "\n".join([*command, version, _processor(), _SOURCE.read_text()])
    return folder / f"kernels-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"


def build(flags: Sequence[str], folder: Path) -> Path:
    """The library for ``flags``, compiled (some seconds) unless ``folder`` holds it already.

    Processes that build at the same time each put the same whole file in its place.

    Raises:
        OSError: the compiler failed (the message holds what it said), or ``folder`` cannot be written.
    """
    library = library_path(flags, folder)
    if not library.exists():
        logger.info("Compiling the native kernels for this processor, once: %s", library)
        with atomic_path(library) as temporary:
            command = [*_command(flags), str(_SOURCE), "-o", str(temporary)]
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


class Kernels:
    """The functions of ``kernels.cpp``. Maps are flat float32 tensors of ``height * channels * line(width)`` values.

    Attributes:
        block_size: output channels that the packed weights come in.
        has_half: whether this processor multiplies bfloat16.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name, signature in _SIGNATURES.items():
            getattr(self._library, f"safmn_{name}").argtypes = signature
        self.block_size: int = self._library.safmn_block_size()
        self.has_half = bool(self._library.safmn_has_half())

    def line(self, width: int) -> int:
        """Floats that a row of one channel takes in a map."""
        size: int = self._library.safmn_line(width)
        return size

    def call(self, function: str, *arguments: Argument) -> None:
        """Call ``safmn_<function>`` with as many threads as torch has. Other Python threads run meanwhile.

        Raises:
            MemoryError: there is too little.
        """
        native = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
        if getattr(self._library, f"safmn_{function}")(*native, torch.get_num_threads()):
            raise MemoryError(f"the native kernel {function} needs more memory than there is")


_building = threading.Lock()


def this_machine() -> Kernels:
    """The kernels for this machine, from the user's cache or, where that cannot be written, built for this process.

    Raises:
        OSError: they cannot be built.
    """
    with _building:
        return _this_machine()


@functools.cache
def _this_machine() -> Kernels:
    folder, flags = cache_folder() / "native", machine_flags()
    if library_path(flags, folder).exists() or _writable(folder):
        return Kernels(build(flags, folder))
    logger.warning("%s cannot be written: the native kernels are compiled for this process alone.", folder)
    with tempfile.TemporaryDirectory(prefix="safmn-", ignore_cleanup_errors=True) as temporary:
        return Kernels(build(flags, Path(temporary)))


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


class Workspace(threading.local):
    """Memory for maps, by name, that all calls of a thread share: it is as large as the largest call needed."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, floats: int) -> Tensor:
        """At least ``floats`` values, with whatever stands there."""
        if name not in self._buffers or self._buffers[name].numel() < floats:
            self._buffers.pop(name, None)
            self._buffers[name] = _allocate(floats)
        return self._buffers[name][:floats]


def _allocate(floats: int) -> Tensor:
    """Memory on large pages, where the system has them: rows of many channels lie on more pages than the TLB holds.

    It is private: by default Python's would be shared with forked processes, which could be computing there too.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        memory = mmap.mmap(-1, 4 * floats, **private)
    except OSError as error:
        raise MemoryError(f"no {4 * floats} bytes for the native kernels") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    with torch.inference_mode(False):  # the caller may be in it, and this outlives the call
        return torch.frombuffer(memory, dtype=torch.float32)
