"""Measure how long networks take and how much memory they need, on this machine, by the protocol of the paper.

One image whose output is 1280x720 (320x180 at x4), 50 runs after a warm-up. All sides (network, back end, precision)
take turns, so that a change of the machine's speed affects all of them alike.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from safmn.archs.peers import folded
from safmn.errors import OptionError, UserError, first_line
from safmn.evaluation.costs import OUTPUT, published_row, sources, windows_of
from safmn.evaluation.methods import Method, open_methods
from safmn.evaluation.tables import Column, Table
from safmn.evaluation.timing import Timing, compare
from safmn.imports import Imports, imported
from safmn.inference.backends import NAMES, available_backends, make_backend
from safmn.inference.samples import made_up_photographs
from safmn.kernels.cpu.build import processor

RUNS = 50
WARM_UP = 5
EAGER = "eager"
_MEGABYTE = 2**20


@dataclass(frozen=True)
class Speed:
    """The speed of a network on one back end and in one precision.

    Attributes:
        method: the network.
        backend: the back end.
        precision: the precision.
        input: height and width of the input.
        timing: the measured seconds.
        peak: memory in MB; None if it was not measured.
    """

    method: Method
    backend: str
    precision: str
    input: tuple[int, int]
    timing: Timing
    peak: float | None = None


@dataclass(frozen=True)
class _Side:
    method: Method
    backend: str
    precision: str
    x: Tensor
    run: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        return f"{self.method.label} {self.backend} {self.precision}"


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Attributes:
        device: device of the networks.
        runs: timed runs of each side.
        warm_up: runs before them.
        output: height and width of the output.
        memory: measure memory, too.
    """

    device: torch.device
    runs: int = RUNS
    warm_up: int = WARM_UP
    output: tuple[int, int] = OUTPUT
    memory: bool = True


def measure(
    methods: Sequence[Method],
    protocol: Protocol,
    *,
    backends: Sequence[str] = (EAGER,),
    precisions: Sequence[str] = ("fp32",),
) -> tuple[list[Speed], list[str]]:
    """Time networks on back ends and in precisions, in turn.

    Args:
        methods: networks; they need no trained weights.
        protocol: how to measure.
        backends: names of back ends, or ``all``.
        precisions: ``fp32``, ``bf16``, ``fp16``.

    Returns:
        The measurements, and one sentence for each side that was left out.

    Raises:
        OptionError: a back end does not exist, or no side can run.
    """
    left_out: list[str] = []
    sides: list[_Side] = []
    for method in methods:
        for backend in _backends(backends, protocol.device):
            for precision in precisions:
                try:
                    sides.append(_side(method, backend, precision, protocol))
                except UserError as error:
                    left_out.append(f"{method.label}, {backend}, {precision}: {first_line(error)}")
    if not sides:
        raise OptionError("nothing can be measured: " + "; ".join(left_out))
    wait = _synchronizer(protocol.device)
    total = len(sides) * (protocol.runs + protocol.warm_up)
    with tqdm(total=total, desc="timing", unit="run", leave=False, disable=None) as bar:
        timings = compare(
            {str(number): lambda side=side: side.run(side.x) for number, side in enumerate(sides)},  # type: ignore[misc]
            rounds=protocol.runs,
            warmup=protocol.warm_up,
            synchronize=wait,
            on_call=bar.update,
        )
    found = [
        Speed(side.method, side.backend, side.precision, (side.x.shape[2], side.x.shape[3]), timings[str(number)])
        for number, side in enumerate(sides)
    ]
    if protocol.memory:
        found = [replace(speed, peak=_peak(side, protocol)) for speed, side in zip(found, sides, strict=True)]
    return found, left_out


def with_values(method: Method) -> Method:
    """Return a method whose network can run: an untrained one gets random weights, which take as long as others."""
    network = method.network
    if network is None or not any(each.is_meta for each in (*network.parameters(), *network.buffers())):
        return method
    (opened,) = open_methods([method.text], scale=method.scale, with_values=True)
    return opened


def _backends(wanted: Sequence[str], device: torch.device) -> list[str]:
    if list(wanted) != ["all"]:
        return list(wanted)
    missing = available_backends(device)
    return [name for name in NAMES if name != "auto" and missing[name] is None]


def _side(method: Method, backend: str, precision: str, protocol: Protocol) -> _Side:
    """Build a side and run it once, so that a back end that compiles for a size has done so."""
    if method.network is None:
        raise OptionError("only networks can be timed")
    network = folded(method.network)
    step = windows_of(network) if backend == EAGER else int(getattr(network, "window", windows_of(network)))
    height, width = (math.ceil(side / method.scale / step) * step for side in protocol.output)
    x = made_up_photographs(height, width)[:1].to(protocol.device)
    run = make_backend(backend, network.to(protocol.device), device=protocol.device, precision=precision)
    try:
        run(x)
    except UserError:
        raise
    except Exception as error:  # a user's network may raise any exception
        raise OptionError(f"it fails on an image of {width}x{height}: {type(error).__name__}: {error}") from error
    return _Side(method, backend, precision, x, run)


def _synchronizer(device: torch.device) -> Callable[[], object] | None:
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return lambda: module.synchronize()


def _peak(side: _Side, protocol: Protocol) -> float | None:
    """Return the memory of a side in MB: on a CUDA GPU that of its tensors, elsewhere that of a process of its own."""
    if protocol.device.type == "cuda":
        torch.cuda.synchronize(protocol.device)
        before = torch.cuda.memory_allocated(protocol.device)
        torch.cuda.reset_peak_memory_stats(protocol.device)
        side.run(side.x)
        assert side.method.network is not None
        weights: int = sum(each.nbytes for each in side.method.network.parameters())
        return (torch.cuda.max_memory_allocated(protocol.device) - before + weights) / _MEGABYTE
    if protocol.device.type != "cpu":
        return None
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    bare = replace(side.method, network=None)  # the process opens the network itself, which its memory includes
    process = context.Process(target=_child, args=(send, imported(), bare, side.backend, side.precision, protocol))
    process.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:  # the process was killed, most likely for memory
        found = None
    process.join()
    return found if isinstance(found, float) else None


def _child(
    send: Connection, imports: Imports, method: Method, backend: str, precision: str, protocol: Protocol
) -> None:
    """Send the memory in MB that a network needs beyond torch; None if this system does not tell."""
    before = _resident()
    (opened,) = open_methods([method.text], scale=method.scale, with_values=True)
    side = _side(opened, backend, precision, protocol)
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


def _processor_name() -> str:
    """Return the first line of the processor's description, such as ``AMD EPYC``."""
    first = processor().splitlines()[0]
    return first.partition(":")[2].strip() or first or "a CPU"


def speed_table(speeds: Sequence[Speed], protocol: Protocol) -> Table:
    """Return a table of measured times and memory beside the published ones."""
    columns = [
        Column("network"),
        Column("back end"),
        Column("precision"),
        Column("input"),
        Column("time (ms)", "measured"),
        Column("spread"),
        Column("time (ms)", "published"),
        Column("memory (MB)", "measured"),
        Column("memory (MB)", "published"),
    ]
    table = Table(f"Time and memory for one output image of {protocol.output[1]}x{protocol.output[0]}", columns)
    rows = [published_row(speed.method, "runtime", measured="time") for speed in speeds]
    for speed, row in zip(speeds, rows, strict=True):
        height, width = speed.input
        table.rows.append(
            [
                speed.method.label,
                speed.backend,
                speed.precision,
                f"{width}x{height}",
                f"{speed.timing.median * 1e3:.2f}",
                f"{speed.timing.spread:.0%}",
                row.time.text if row and row.time else "",
                "" if speed.peak is None else f"{speed.peak:.1f}",
                row.memory.text if row and row.memory else "",
            ]
        )
    table.notes += notes(protocol)
    table.notes += sources(row for row in rows if row and row.time)
    return table.without_empty_columns()


def notes(protocol: Protocol) -> list[str]:
    """Return the sentences that say how times were measured."""
    gpu = protocol.device.type == "cuda"
    where = (
        torch.cuda.get_device_name(protocol.device)
        if gpu
        else f"{_processor_name()}, {torch.get_num_threads()} threads"
    )
    memory = "that of the tensors" if gpu else "that of a process of its own, beyond Python and torch"
    return [
        f"measured on {where}: median of {protocol.runs} runs after {protocol.warm_up}, all rows in turn; spread: "
        f"(slowest - fastest) / median; memory: {memory}.",
        "published: on the authors' GPU; only ratios between rows can be compared.",
    ]
