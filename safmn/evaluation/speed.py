"""Measure how long networks take and how much memory they need, on this machine, by the protocol of the paper.

One image whose output is 1280x720 (320x180 at x4), 50 runs after a warm-up. All sides (network, back end, precision)
take turns, so that a change of the machine's speed affects all of them alike. Each time is kept as soon as it is
measured, so that an interrupted measurement goes on where it was, and a second one times only what is new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
from tqdm import tqdm

from safmn.errors import OptionError, UserError, first_line
from safmn.evaluation.costs import OUTPUT, published_row, sources
from safmn.evaluation.methods import Method
from safmn.evaluation.peak_memory import peak_of
from safmn.evaluation.speed_sides import EAGER, Protocol, Side, sides_of
from safmn.evaluation.tables import Column, Table
from safmn.evaluation.timing import Timing, compare
from safmn.kernels.cpu.build import processor
from safmn.system.load import OtherPrograms

_BUSY = 0.2  # cores


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
        since: when an earlier command began to measure it, in seconds since 1970; None if it was measured now.
        others: how many cores other programs used meanwhile.
    """

    method: Method
    backend: str
    precision: str
    input: tuple[int, int]
    timing: Timing
    peak: float | None = None
    since: float | None = None
    others: float = 0.0


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
    sides, left_out = _ready(sides_of(methods, protocol, backends, precisions))
    if not sides:
        raise OptionError("nothing can be measured: " + "; ".join(left_out))
    _time(sides, protocol)
    for side in sides:
        if protocol.memory and side.kept.peak is None and (peak := peak_of(side)) is not None:
            side.kept.set_peak(peak)
    return [_speed(side) for side in sides], left_out


def _ready(sides: Sequence[Side]) -> tuple[list[Side], list[str]]:
    """Return the sides whose times are known or that run, and one sentence for each other one."""
    ready, left_out = [], []
    for side in sides:
        try:
            if _missing(side):
                _ = side.run
            ready.append(side)
        except UserError as error:
            left_out.append(f"{side.name}: {first_line(error)}")
    return ready, left_out


def _missing(side: Side) -> int:
    """Return how many runs are still to be timed."""
    return max(side.protocol.runs - len(side.kept.seconds), 0)


def _time(sides: Sequence[Side], protocol: Protocol) -> None:
    """Time the runs that are missing, and keep each."""
    missing = {str(number): _missing(side) for number, side in enumerate(sides) if _missing(side)}
    calls = {name: _call(sides[int(name)]) for name in missing}
    total = sum(protocol.warm_up + runs for runs in missing.values())
    load = OtherPrograms()
    try:
        with tqdm(total=total, desc="timing", unit="run", leave=False, disable=None) as bar:
            compare(
                calls,
                rounds=missing,
                warmup=protocol.warm_up,
                synchronize=_synchronizer(protocol.device),
                on_call=bar.update,
                on_time=lambda name, seconds: sides[int(name)].kept.add(seconds),
            )
    finally:  # the times of an interrupted measurement are kept, too
        for name in missing:
            sides[int(name)].kept.add_others(load.cores())


def _call(side: Side) -> Callable[[], object]:
    run, x = side.run, side.x
    return lambda: run(x)


def _speed(side: Side) -> Speed:
    timing = Timing(tuple(side.kept.seconds[-side.protocol.runs :]))
    peak = side.kept.peak if side.protocol.memory else None
    kept = side.kept
    return Speed(side.method, side.backend, side.precision, side.input, timing, peak, kept.since, kept.others)


def _synchronizer(device: torch.device) -> Callable[[], object] | None:
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return lambda: module.synchronize()


def _processor_name() -> str:
    """Return the first line of the processor's description, such as ``AMD EPYC``."""
    first = processor().splitlines()[0]
    return first.partition(":")[2].strip() or first or "a CPU"


def speed_table(speeds: Sequence[Speed], protocol: Protocol) -> Table:
    """Return a table of measured times and memory, beside the published ones if they are of images of this size."""
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
    comparable = protocol.output == OUTPUT
    rows = [published_row(speed.method, "runtime", measured="time") if comparable else None for speed in speeds]
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
    timed = [row for row in rows if row and row.time]
    table.notes += notes(speeds, protocol, with_published=bool(timed))
    table.notes += sources(timed)
    return table.without_empty_columns()


def notes(speeds: Sequence[Speed], protocol: Protocol, *, with_published: bool = True) -> list[str]:
    """Return the sentences that say how times were measured."""
    gpu = protocol.device.type == "cuda"
    where = (
        torch.cuda.get_device_name(protocol.device)
        if gpu
        else f"{_processor_name()}, threads: {torch.get_num_threads()}"
    )
    memory = "that of the tensors" if gpu else "that of a process of its own, beyond Python and torch"
    found = [
        f"time and memory measured on {where}: median of {protocol.runs} runs after {protocol.warm_up}, all rows in "
        f"turn; spread: (slowest - fastest) / median; memory: {memory}."
    ]
    if with_published:
        found.append(
            "time and memory published: on the authors' GPU, with PyTorch in fp32; only ratios between rows can be "
            "compared."
        )
    elif protocol.output != OUTPUT:
        found.append(f"published times are left out: they are for an output of {OUTPUT[1]}x{OUTPUT[0]}.")
    busiest = max((speed.others for speed in speeds), default=0.0)
    if busiest > _BUSY and not gpu:
        found.append(
            f"other programs used up to {busiest:.1f} of {psutil.cpu_count()} cores meanwhile, so the times are too "
            "long; measure on an idle machine with --again."
        )
    before = [f"{speed.method.label} ({_date(speed.since)})" for speed in speeds if speed.since is not None]
    if before:
        found.append(
            f"timed by an earlier command: {', '.join(before)}. The machine may have been busier then; --again "
            "measures all."
        )
    return found


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
