"""How much memory a computation takes, how much there is, whether there was too little, and what malloc keeps."""

from __future__ import annotations

import ctypes
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

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_HEAP_BLOCK = 2**22
_CGROUP = Path("/sys/fs/cgroup")

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
"""What says so by its class alone; see :func:`is_out_of_memory`."""


class PeakMemory(TorchDispatchMode):
    """Counts, while it is active, the bytes of the tensors that live at the same time; meta tensors are counted too.

    Attributes:
        peak: the most bytes so far. What libraries use for themselves is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
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
    """What the container's limit leaves, in bytes; None where there is none."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    cached = int(statistics.get("inactive_file", 0))  # files that were read: the system drops them when it needs room
    return None if limit == "max" else int(limit) - int(used) + cached


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device: the GPU's, or what the machine (and the container) can still give."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    free: int = psutil.virtual_memory().available
    limited = _cgroup_free()
    return free if limited is None else min(free, limited)


def keep_freed_memory() -> None:
    """Ask the C library (glibc) to keep the memory of freed tensors for the next ones.

    Activations of tens of MB are freed and made again in every training step. Returned to the system each time, they
    come back as new pages that the kernel clears: an eighth of the step (docs/performance.md).
    """
    _set_malloc({_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: 2**31 - 1})  # the largest that fits


def keep_heap_small() -> None:
    """Have glibc give large blocks back to the system at once, for commands that own their process.

    By default its threshold for doing so grows to 32 MiB with use, and the bands of features, freed in another order
    than they were made, leave holes of 0.4 GiB.
    """
    _set_malloc({_M_MMAP_THRESHOLD: _HEAP_BLOCK})


def _set_malloc(settings: Mapping[int, int]) -> None:
    """glibc's ``mallopt``; does nothing with other C libraries."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for key, value in settings.items():
            mallopt(key, value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, whichever library raised it."""
    if isinstance(error, OUT_OF_MEMORY):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("can't allocate memory", "out of memory", "failed to allocate", "bad_alloc")
    )
