"""The native kernels of a 64-bit ARM processor: cross-compiled, run by QEMU, and called like those of this machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from torch import Tensor

from safmn.kernels.cpu import training
from safmn.kernels.cpu.build import build
from safmn.kernels.cpu.inference import SOURCE, Argument, Kernels
from safmn.kernels.cpu.training import TrainingKernels

TRAINING_SOURCE = SOURCE.with_name("training.cpp")
EMULATOR = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
"""The command that runs a program of the other processor, with the libraries where Debian and Ubuntu have them."""

_CALLER = Path(__file__).with_name("emulated_kernels.cpp")
_INTEGER, _REAL, _BUFFER = range(3)


@dataclass(frozen=True)
class Target:
    """A compiler for the other processor.

    Attributes:
        compiler: the program.
        flags: choose the processor; the kernels' own flags are added.
    """

    compiler: str
    flags: tuple[str, ...]

    def missing(self) -> str | None:
        """Return which programs are not installed and how to get them; None if all are there."""
        needed = (self.compiler, GCC.compiler, EMULATOR[0])
        absent = [program for program in dict.fromkeys(needed) if shutil.which(program) is None]
        if not absent:
            return None
        return f"{', '.join(absent)} not installed (Debian, Ubuntu: apt install g++-aarch64-linux-gnu clang qemu-user)"

    def build(self, source: Path, folder: Path) -> Path:
        """Compile the kernels as the package does it, with this compiler and these flags."""
        with mock.patch.dict(os.environ, {"CXX": self.compiler}):
            return build(source, self.flags, folder)


GCC = Target("aarch64-linux-gnu-g++", ("-mcpu=cortex-a72",))
CLANG = Target("clang++", ("--target=aarch64-linux-gnu", "-mcpu=apple-m1"))
"""As Apple's compiler does it: LLVM, without OpenMP, for the M1."""


def build_caller(folder: Path) -> Path:
    """Compile the program that calls the kernels for :class:`Library`."""
    program = folder / "caller"
    subprocess.run([GCC.compiler, "-std=c++17", "-O2", str(_CALLER), "-o", str(program), "-ldl"], check=True)
    return program


class Library:
    """A native library in an emulated process.

    Args:
        caller: what :func:`build_caller` made.
        path: the library.
        emulator: the command that runs programs of the other processor.
    """

    def __init__(self, caller: Path, path: Path, emulator: Sequence[str] = EMULATOR) -> None:
        command = [*emulator, str(caller), str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=10)

    def call(self, name: str, *arguments: Argument) -> int:
        """Call a function, which may write to the tensors, and return its result, a whole number."""
        buffers: dict[int, int] = {}  # address -> bytes; the same memory may be passed twice
        for argument in arguments:
            if isinstance(argument, Tensor):
                buffers[argument.data_ptr()] = max(buffers.get(argument.data_ptr(), 0), _extent(argument))
        places = {address: place for place, address in enumerate(buffers)}
        parts = [struct.pack("<3Q", len(name), len(buffers), len(arguments)), name.encode()]
        for address, size in buffers.items():
            parts += [struct.pack("<Q", size), ctypes.string_at(address, size)]
        for argument in arguments:
            if isinstance(argument, Tensor):
                parts.append(struct.pack("<2Q", _BUFFER, places[argument.data_ptr()]))
            elif isinstance(argument, float):
                parts.append(struct.pack("<Qf4x", _REAL, argument))
            else:
                parts.append(struct.pack("<Qq", _INTEGER, 0 if argument is None else int(argument)))
        assert self._process.stdin is not None
        self._process.stdin.write(b"".join(parts))
        self._process.stdin.flush()
        (result,) = struct.unpack("<q", self._answer(8))
        for address, size in buffers.items():
            ctypes.memmove(address, self._answer(size), size)
        return int(result)

    def _answer(self, size: int) -> bytes:
        assert self._process.stdout is not None
        answer = self._process.stdout.read(size)
        if len(answer) < size:
            raise RuntimeError(f"the emulated process ended with status {self._process.wait(timeout=10)}")
        return answer


def _extent(tensor: Tensor) -> int:
    """Return the number of bytes from a tensor's first value to its last one."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _int(word: int) -> int:
    """Return the C ``int`` in a word, whose upper half is undefined."""
    return ctypes.c_int(word).value


class EmulatedKernels(Kernels):
    """The functions of an emulated ``inference.cpp``."""

    def __init__(self, library: Library, threads: int = 1) -> None:
        self._emulated, self._threads = library, threads
        self.block_size = _int(library.call("safmn_block_size"))
        self.has_half = bool(_int(library.call("safmn_has_half")))

    def line(self, width: int) -> int:
        """See :class:`Kernels`."""
        return _int(self._emulated.call("safmn_line", width))

    def call(self, function: str, *arguments: Argument) -> None:
        """See :class:`Kernels`."""
        if _int(self._emulated.call(f"safmn_{function}", *arguments, self._threads)):
            raise MemoryError(function)


class EmulatedTrainingKernels(TrainingKernels):
    """The functions of an emulated ``training.cpp``."""

    def __init__(self, library: Library, threads: int = 1) -> None:
        self._emulated, self._threads = library, threads
        self.lanes = _int(library.call("safmn_lanes"))

    def kept(self, sizes: tuple[int, ...]) -> int:
        """See :class:`TrainingKernels`."""
        return self._emulated.call("safmn_kept", *sizes)

    def call(self, function: str, *tensors: Tensor, sizes: tuple[int, ...]) -> None:
        """See :class:`TrainingKernels`."""
        if _int(self._emulated.call(f"safmn_train_{function}", *tensors, *sizes, self._threads)):
            raise MemoryError(function)


@contextmanager
def training_with(kernels: TrainingKernels) -> Iterator[None]:
    """In this block, :class:`safmn.kernels.cpu.training.NativeSAFMN` runs these kernels."""
    with mock.patch.object(training, "this_machine", return_value=kernels):
        yield
