"""The paper's tables, rebuilt: every published row beside what is measured here, and methods that join them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from safmn.errors import OptionError
from safmn.evaluation import costs
from safmn.evaluation.costs import Cost, cost_of
from safmn.evaluation.methods import Method, untrained
from safmn.evaluation.published import SETS, Row, joined_row, rows
from safmn.evaluation.quality_notes import quality_note
from safmn.evaluation.scoring import SetResult
from safmn.evaluation.sizes import size_named
from safmn.evaluation.speed import Speed
from safmn.evaluation.tables import Column, Table

_PSNR, _SSIM = "psnr", "ssim"


@dataclass(frozen=True)
class Entry:
    """One method in a table: its published row, what can be counted, and what was measured.

    Attributes:
        label: name of the row.
        scale: scale of super-resolution.
        row: the published row, of other tables for a method that is not in this one; None if there is none.
        cost: the counted network; None if it cannot be built here.
        quality: set -> scores (``psnr``, ``ssim``).
        speed: time and memory.
        source: where the weights or images come from.
        measured_as: label of the method that was scored.
    """

    label: str
    scale: int
    row: Row | None = None
    cost: Cost | None = None
    quality: Mapping[str, SetResult] = field(default_factory=dict)
    speed: Speed | None = None
    source: str | None = None
    measured_as: str | None = None


def networks_of(table: str, scale: int | None = None) -> list[Method]:
    """Return the networks of a published table that can be built here, untrained.

    Raises:
        OptionError: there is none at this scale.
    """
    found = [size_named(f"{row.network} x{row.scale}") for row in rows(table, scale)]
    methods = [untrained(size) for size in found if size is not None]
    if not methods:
        raise OptionError(f"no network of the table {table} can be built at scale {scale}")
    return methods


def entries(
    table: str,
    scale: int,
    methods: Sequence[Method],
    quality: Mapping[str, Mapping[str, SetResult]],
    speeds: Sequence[Speed] = (),
) -> list[Entry]:
    """Return the rows of a published table at a scale, then the methods that are not in it.

    Args:
        table: name of the table.
        scale: scale of super-resolution.
        methods: opened methods, with weights or images; the first with a row's name is measured for it, the others
            get rows of their own.
        quality: key of a method -> set -> scores.
        speeds: measured times.
    """
    by_speed = {speed.method.key: speed for speed in reversed(speeds)}
    waiting = [method for method in methods if method.scale == scale]
    found = []
    for row in rows(table, scale):
        method = next((each for each in waiting if each.published == row.network), None)
        if method is not None:
            waiting.remove(method)
        size = size_named(f"{row.network} x{scale}")
        counted = method if method is not None and method.network is not None else None
        if counted is None and size is not None:
            counted = untrained(size)
        keys = [each.key for each in (method, counted) if each is not None]
        found.append(
            Entry(
                row.network,
                scale,
                row,
                None if counted is None else Cost(counted, cost_of(counted).counted, row),
                quality.get(method.key, {}) if method is not None else {},
                next((by_speed[key] for key in keys if key in by_speed), None),
                method.source if method is not None else None,
                method.label if method is not None else None,
            )
        )
    for method in waiting:
        speed = by_speed.get(method.key)
        other = joined_row(method.published, scale) if method.published else None
        cost = Cost(method, cost_of(method).counted, other) if method.network is not None else None
        found.append(Entry(method.label, scale, other, cost, quality.get(method.key, {}), speed, method.source))
    return found


def paper_table(title: str, found: Sequence[Entry], notes: Sequence[str] = ()) -> Table:
    """Return the table of ``entries``: cost, quality and time, each measured and published in columns of their own."""
    sets = [*SETS, *dict.fromkeys(name for entry in found for name in entry.quality if name not in SETS)]
    columns = [Column("method"), *_twice("params (K)"), *_twice("multiply-adds (G)"), *_twice("activations (M)")]
    for name in sets:
        columns += _twice(f"{name} PSNR / SSIM")
    columns += [*_twice("time (ms)"), *_twice("memory (MB)")]
    table = Table(title, columns)
    for entry in found:
        table.rows.append([entry.label, *_cost_cells(entry), *_quality_cells(entry, sets), *_speed_cells(entry)])
    table.notes += [
        "measured: here; cost by fvcore's rules for one output of 1280x720, quality on Y with crop = scale."
    ]
    table.notes += costs.sources(entry.row for entry in found)
    table.notes += [f"{each.label}: measured with {each.source}." for each in found if each.source and each.quality]
    absent = [entry.label for entry in found if entry.row and entry.row.params and entry.cost is None]
    table.notes += [f"not built here: {', '.join(absent)}."] if absent else []
    table.notes += costs.differences((entry.label, entry.cost) for entry in found if entry.cost is not None)
    for each in found:
        table.notes += quality_note(each.label, each.row, each.quality, each.source)
    table.notes += list(notes)
    return table.without_empty_columns()


def _twice(title: str) -> list[Column]:
    return [Column(title, "measured"), Column(title, "published")]


def _cost_cells(entry: Entry) -> list[str]:
    values = entry.cost.values if entry.cost is not None else None
    row = entry.row
    figures = (row.params, row.madds, row.acts) if row is not None else (None, None, None)
    cells = []
    for value, figure, decimals in zip(values or [None] * 3, figures, (2, 2, 2), strict=True):
        cells += ["" if value is None else f"{value:,.{decimals}f}", figure.text if figure else ""]
    return cells


def _quality_cells(entry: Entry, sets: Sequence[str]) -> list[str]:
    cells = []
    for name in sets:
        mean = entry.quality[name].mean if name in entry.quality else {}
        cells.append(pair(mean.get(_PSNR), mean.get(_SSIM), 3))
        printed = entry.row.quality.get(name) if entry.row is not None else None
        cells.append("" if printed is None else pair(*printed, 2))
    return cells


def pair(psnr: float | None, ssim: float | None, decimals: int) -> str:
    """Return ``PSNR / SSIM`` as text."""
    if psnr is None:
        return ""
    return f"{psnr:.{decimals}f}" if ssim is None else f"{psnr:.{decimals}f} / {ssim:.4f}"


def _speed_cells(entry: Entry) -> list[str]:
    speed, row = entry.speed, entry.row
    time = "" if speed is None else f"{speed.timing.median * 1e3:.2f}"
    peak = "" if speed is None or speed.peak is None else f"{speed.peak:.1f}"
    return [time, row.time.text if row and row.time else "", peak, row.memory.text if row and row.memory else ""]
