"""Compile the C++ kernels with the system's compiler. Standard library only, because setup.py runs this file."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEADERS = Path(__file__).parent
SOURCES = (HEADERS / "inference.cpp", HEADERS / "training.cpp")
_COMPILERS = ("g++", "clang++", "c++")
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-Wno-psabi")


@dataclass(frozen=True)
class Level:
    """A level of processors for which a wheel carries compiled kernels.

    Attributes:
        name: part of the library's file name.
        flags: compiler flags.
        needs: features that the processor must have, by their names in Linux's /proc/cpuinfo.
        lanes: floats in a vector.
    """

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]
    lanes: int


_AVX2 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_WIDE = ("-march=x86-64-v4", "-mprefer-vector-width=512")
LEVELS: dict[str, tuple[Level, ...]] = {
    "x86_64": (
        Level("avx512bf16", (*_WIDE, "-mavx512bf16"), _AVX512 | {"avx512_bf16"}, 16),
        Level("avx512", _WIDE, _AVX512, 16),
        Level("avx2", ("-march=x86-64-v3",), _AVX2, 8),
    ),
    "aarch64": (Level("neon", (), frozenset(), 4),),
}
"""Levels for each kind of processor, best first."""


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


def architecture() -> str:
    """Return the kind of processor by its name on Linux: ``x86_64``, ``aarch64`` or another."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def machine_flags() -> tuple[str, ...]:
    """Return the compiler flags for exactly this processor.

    Nothing is needed for Macs with ARM processors: Apple's compiler builds for the M1 by default, NEON is part of every
    64-bit ARM processor, and not every compiler there knows "native".
    """
    if architecture() == "x86_64":
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",) if platform.machine().lower() == "aarch64" else ()


def command(flags: Sequence[str]) -> list[str]:
    """Return the start of a command that compiles a library."""
    return [compiler() or "g++", *_FLAGS, *flags]


def compile_library(source: Path, flags: Sequence[str], output: Path) -> None:
    """Compile a C++ file to a shared library.

    Raises:
        OSError: the compiler failed; the message contains its output.
    """
    line = [*command(flags), f"-I{HEADERS}", str(source), "-o", str(output)]
    done = subprocess.run(line, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise OSError(f"the native kernels do not compile: {' '.join(line)}: {done.stderr.strip()[:500]}")


def compile_levels(folder: Path, levels: Sequence[Level] | None = None) -> list[Path]:
    """Compile every source for the levels of this kind of processor, for a wheel; return the libraries.

    They use the system's C++ library, as torch does. Linked into them, it would need a newer C library (2.36).

    Args:
        folder: folder of the libraries; created if necessary.
        levels: the levels; None for all.

    Raises:
        OSError: there is no compiler, or it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    stripped = ("-s",) if platform.system() == "Linux" else ()
    for level in LEVELS.get(architecture(), ()) if levels is None else levels:
        for source in SOURCES:
            made.append(folder / f"{source.stem}-{level.name}.so")
            compile_library(source, (*level.flags, *stripped), made[-1])
    return made
