"""Builds ``inference.cpp`` for this machine, once, and calls it on tensors."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from safmn.kernels.cpu.build import load_for_this_machine
from safmn.runtime.threads import BUILDING, Pool

SOURCE = Path(__file__).with_name("inference.cpp")

# The signatures in inference.cpp: Tensors (addresses), Integers, Distances, Reals. The number of threads comes last.
_T, _I, _D, _R = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t, ctypes.c_float
_SIGNATURES = {
    "to_map": (_T, _T, _I, _I, _I, _D, _D, _I),
    "from_map": (_T, _T, _I, _I, _I, _I, _I),
    "conv": (_T, _T, _T, _I, _I, _I, _I, _T, _T, _I, _I),
    "block": (_T, _T, _I, _I, _I, *[_T] * 10, _I, _T, _T, _T, _T, _R, _I, _I),
}

Argument = Tensor | int | float | None


class Kernels:
    """The functions of ``inference.cpp``. Maps are flat float32 tensors of ``height * channels * line(width)`` values.

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


def this_machine() -> Kernels:
    """The kernels for this machine, built where they are not in the user's cache.

    Raises:
        OSError: they cannot be built.
    """
    with BUILDING:
        return _this_machine()


@functools.cache
def _this_machine() -> Kernels:
    return load_for_this_machine(SOURCE, Kernels)


class Workspace:
    """Memory for maps, by name, for one call after the other: it is as large as the largest call needed."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, floats: int) -> Tensor:
        """At least ``floats`` values, with whatever stands there."""
        if name not in self._buffers or self._buffers[name].numel() < floats:
            self._buffers.pop(name, None)
            self._buffers[name] = _allocate(floats)
        return self._buffers[name][:floats]


_workspaces = Pool(Workspace, idle=os.cpu_count() or 1)
_current = threading.local()


def with_workspace(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``run`` with a workspace that no other thread uses meanwhile: :func:`workspace`."""

    def running(x: Tensor) -> Tensor:
        with _workspaces.one() as _current.workspace:
            try:
                return run(x)
            finally:
                del _current.workspace

    return running


def workspace() -> Workspace:
    """That of the call that this thread is in."""
    current: Workspace = _current.workspace
    return current


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
