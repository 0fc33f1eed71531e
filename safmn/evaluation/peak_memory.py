"""The memory that a network needs: on a CUDA GPU that of its tensors, elsewhere that of a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch

from safmn.evaluation.methods import open_methods
from safmn.evaluation.speed_sides import Side
from safmn.imports import Imports, imported

_MEGABYTE = 2**20


def peak_of(side: Side) -> float | None:
    """Return the memory of a side in MB; None if this system does not tell."""
    device = side.protocol.device
    if device.type == "cuda":
        run, x = side.run, side.x
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run(x)
        weights: int = sum(each.nbytes for each in side.network.parameters())
        return (torch.cuda.max_memory_allocated(device) - before + weights) / _MEGABYTE
    return _of_process(side) if device.type == "cpu" else None


def _of_process(side: Side) -> float | None:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    bare = Side(replace(side.method, network=None), side.backend, side.precision, side.protocol)  # opened there
    process = context.Process(target=_child, args=(send, imported(), bare))
    process.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:  # the process was killed, most likely for memory
        found = None
    process.join()
    return found if isinstance(found, float) else None


def _child(send: Connection, imports: Imports, bare: Side) -> None:
    """Send the memory in MB that a network needs beyond torch; None if this system does not tell."""
    before = _resident()
    (opened,) = open_methods([bare.method.text], scale=bare.method.scale, with_values=True, tolerant=True)
    side = replace(bare, method=opened)
    for _ in range(2):
        side.run(side.x)
    peak = _highest()
    send.send(None if peak is None else (peak - before) / _MEGABYTE)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _highest() -> int | None:
    """Return the highest number of bytes in memory of this process; None if the system does not tell."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, whose peak includes that of the process that started this one
        return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return None
