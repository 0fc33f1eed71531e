"""Memory: measure peak use, find the free amount, recognise out-of-memory errors, and configure malloc."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from <malloc.h>
_HEAP_BLOCK = 2**22
_CGROUP = Path("/sys/fs/cgroup")

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
"""Exception classes that always mean out of memory; see :func:`is_out_of_memory`."""


class PeakMemory(TorchDispatchMode):
    """Context that counts the bytes of the tensors that exist at the same time, including meta tensors.

    Attributes:
        peak: the maximum in bytes so far, without the internal memory of libraries.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: otherwise torch imports torch._dynamo (a second of CPU time) to exclude this mode from it."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its results."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def _cgroup_free() -> int | None:
    """Return the bytes left below the container's limit; None if there is no limit."""
    try:
        names = ("memory.max", "memory.current", "memory.stat")
        limit, used, text = ((_CGROUP / name).read_text(encoding="ascii").strip() for name in names)
        statistics = dict(line.split() for line in text.splitlines())
    except OSError:
        return None
    cached = int(statistics.get("inactive_file", 0))  # cached files, which the system drops when it needs memory
    return None if limit == "max" else int(limit) - int(used) + cached


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes: the GPU's own, or the machine's within the container's limit."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type == "xpu":
        reserved = torch.xpu.memory_reserved(device) - torch.xpu.memory_allocated(device)
        return torch.xpu.mem_get_info(device)[0] + reserved
    free: int = psutil.virtual_memory().available
    limited = _cgroup_free()
    return free if limited is None else min(free, limited)


def shared_memory() -> str:
    """Return the name of the place through which processes share tensors, for messages."""
    return "/dev/shm" if sys.platform == "linux" else "the system's shared memory"


def more_shared_memory() -> str:
    """Return the advice for too little shared memory: an imperative sentence without a full stop."""
    if sys.platform == "linux":
        return "Give it more (docker run --shm-size=2g)"
    return "Make the paging file larger" if sys.platform == "win32" else "Close other programs"


def drop_cached_memory(device: torch.device) -> None:
    """Return a GPU's memory of freed tensors to the system, for tensors of other sizes."""
    if device.type in ("cuda", "xpu", "mps"):
        torch.get_device_module(device).empty_cache()


def keep_freed_memory() -> None:
    """Ask the C library (glibc) to keep the memory of freed tensors for new ones.

    Every training step frees and allocates activations of tens of MB. If glibc returns them to the system each time,
    the kernel must clear new pages, which takes an eighth of the step (docs/performance.md).
    """
    _set_malloc({_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: 2**31 - 1})  # the largest that fits


def keep_heap_small() -> None:
    """Make glibc return large blocks to the system immediately; only for commands that own their process.

    By default, glibc's threshold grows to 32 MiB with use. The bands of features are not freed in the order of their
    allocation and would leave holes of 0.4 GiB.
    """
    _set_malloc({_M_MMAP_THRESHOLD: _HEAP_BLOCK})


def private_pages(size: int) -> mmap.mmap:
    """Return ``size`` bytes of memory from the system, on huge pages if it has them.

    By default, Python's ``mmap`` shares memory with forked processes. Here it is private, because a forked process may
    compute in it at the same time as its parent.

    Raises:
        OSError: there is not enough memory.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # this kernel has no huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _set_malloc(settings: Mapping[int, int]) -> None:
    """Call glibc's ``mallopt`` for each setting; do nothing with other C libraries."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for key, value in settings.items():
            mallopt(key, value)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means out of memory, whichever library raised it."""
    if isinstance(error, OUT_OF_MEMORY):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("can't allocate memory", "out of memory", "failed to allocate", "bad_alloc")
    )
