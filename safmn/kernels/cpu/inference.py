"""Build ``inference.cpp`` for this machine, once, and call it on tensors."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from safmn.kernels.cpu.build import load_for_this_machine
from safmn.runtime.threads import BUILDING, Pool
from safmn.system.memory import private_pages

SOURCE = Path(__file__).with_name("inference.cpp")

# The signatures in inference.cpp: tensors (addresses), integers, distances, reals. The last argument is the number of
# threads.
_T, _I, _D, _R = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t, ctypes.c_float
_SIGNATURES = {
    "to_map": (_T, _T, _I, _I, _I, _D, _D, _I),
    "from_map": (_T, _T, _T, *[_I] * 7),
    "conv_to_image": (_T, _T, _T, *[_I] * 7, _T, _T, _I, _I),
    "pool": (_T, _T, *[_I] * 5, _T, _I, _I, _I),
    "moments": (_T, _T, *[_I] * 6),
    "pass": (_T, _T, _T, _T, _I, _I, *[_T] * 12, _I),
    "conv": (_T, _T, _T, _I, _I, _I, _I, _T, _T, _I, _I),
    "block": (_T, _T, _I, _I, _I, *[_T] * 10, _I, _T, _T, _T, _T, _R, _I, _I),
}

Argument = Tensor | int | float | None


class Kernels:
    """The functions of ``inference.cpp``. Maps are flat float32 tensors of ``height * channels * line(width)`` values.

    Attributes:
        block_size: output channels per block of packed weights.
        has_half: whether this processor has bfloat16 products.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name, signature in _SIGNATURES.items():
            getattr(self._library, f"safmn_{name}").argtypes = signature
        self.block_size: int = self._library.safmn_block_size()
        self.has_half = bool(self._library.safmn_has_half())

    def line(self, width: int) -> int:
        """Return the number of floats that a row of one channel takes in a map."""
        size: int = self._library.safmn_line(width)
        return size

    def call(self, function: str, *arguments: Argument) -> None:
        """Call ``safmn_<function>`` with as many threads as torch uses, or with one within :func:`one_thread`.

        Other Python threads keep running.

        Raises:
            MemoryError: there is not enough memory.
        """
        native = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
        threads = 1 if getattr(_current, "alone", False) else torch.get_num_threads()
        if getattr(self._library, f"safmn_{function}")(*native, threads):
            raise MemoryError(f"the native kernel {function} needs more memory than is available")


def this_machine() -> Kernels:
    """Return the kernels for this machine. They are built if they are not in the user's cache.

    Raises:
        OSError: they cannot be built.
    """
    with BUILDING:
        return _this_machine()


@functools.cache
def _this_machine() -> Kernels:
    return load_for_this_machine(SOURCE, Kernels)


class Workspace:
    """Memory for maps, by name, that successive calls reuse. Each buffer grows to the largest size requested."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, floats: int) -> Tensor:
        """Return ``floats`` uninitialised values."""
        if name not in self._buffers or self._buffers[name].numel() < floats:
            self._buffers.pop(name, None)
            self._buffers[name] = _allocate(floats)
        return self._buffers[name][:floats]


_workspaces = Pool(Workspace, idle=os.cpu_count() or 1)
_current = threading.local()


def with_workspace(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return ``run`` with a workspace that no other thread uses during the call; see :func:`workspace`."""

    def running(x: Tensor) -> Tensor:
        with _workspaces.one() as _current.workspace:
            try:
                return run(x)
            finally:
                del _current.workspace

    return running


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Let calls in this block, in this Python thread, use one thread each: for callers that compute several at once."""
    before = getattr(_current, "alone", False)
    _current.alone = before or wanted
    try:
        yield
    finally:
        _current.alone = before


def workspace() -> Workspace:
    """Return the workspace of the call that this thread is running."""
    current: Workspace = _current.workspace
    return current


def _allocate(floats: int) -> Tensor:
    """Allocate memory, on huge pages if the system has them. Rows of many channels span more pages than the TLB has."""
    try:
        memory = private_pages(4 * floats)
    except OSError as error:
        raise MemoryError(f"cannot allocate {4 * floats} bytes for the native kernels") from error
    with torch.inference_mode(False):  # the caller may be in inference mode, and this memory outlives the call
        return torch.frombuffer(memory, dtype=torch.float32)
