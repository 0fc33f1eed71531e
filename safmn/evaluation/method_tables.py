"""One table for methods of any kind: cost, scores on sets, published scores, and differences to the first method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from safmn.evaluation.costs import Cost, sources
from safmn.evaluation.methods import Method
from safmn.evaluation.metric_choice import decimals, settings
from safmn.evaluation.paired import LEVEL, Difference, paired
from safmn.evaluation.published import published, rows_of
from safmn.evaluation.quality_notes import quality_note
from safmn.evaluation.scoring import SetResult
from safmn.evaluation.tables import Column, Table

Results = Mapping[str, Mapping[str, SetResult]]
"""Key of a method -> set -> scores."""

_PRINTED = {"psnr": (0, 2), "ssim": (1, 4)}  # metric -> its place in a published pair, and the decimals printed


def method_table(
    title: str,
    methods: Sequence[Method],
    results: Results,
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    costs: Mapping[str, Cost] | None = None,
    with_published: bool = False,
    with_differences: bool = False,
) -> Table:
    """Return a table with a row for each method.

    Args:
        title: the heading.
        methods: the methods; differences are those to the first.
        results: their scores.
        metrics: name -> section; the order of the columns.
        costs: key of a method -> counted cost, for three columns more.
        with_published: columns with the published scores, where there are any, and the difference.
        with_differences: columns with the mean paired difference to the first method, and its interval.
    """
    sets = list(dict.fromkeys(name for method in methods for name in results.get(method.key, {})))
    columns = [Column("method")]
    columns += [Column(name) for name in ("params (K)", "multiply-adds (G)", "activations (M)")] if costs else []
    for name in sets:
        for metric in metrics:
            columns += _columns(name, metric, with_published, with_differences)
    table = Table(title, columns)
    for method in methods:
        cells = [method.label, *(_cost_cells(costs[method.key]) if costs else [])]
        for name in sets:
            for metric, section in metrics.items():
                cells += _cells(method, methods[0], results, name, metric, section, with_published, with_differences)
        table.rows.append(cells)
    table.notes += _notes(methods, results, metrics, sets, with_published, with_differences)
    return table.without_empty_columns()


def _columns(set_name: str, metric: str, with_published: bool, with_differences: bool) -> list[Column]:
    title = f"{set_name} {metric}"
    columns = [Column(title, "measured" if with_published else "")]
    if with_published:
        columns += [Column(title, "published"), Column(title, "difference")] if metric in _PRINTED else []
    return columns + ([Column(title, "against the first")] if with_differences else [])


def _cost_cells(cost: Cost) -> list[str]:
    values = cost.values
    return ["", "", ""] if values is None else [f"{value:,.2f}" for value in values]


def _cells(
    method: Method,
    first: Method,
    results: Results,
    set_name: str,
    metric: str,
    section: Mapping[str, Any],
    with_published: bool,
    with_differences: bool,
) -> list[str]:
    result = results.get(method.key, {}).get(set_name)
    value = result.mean.get(metric) if result is not None else None
    shown = decimals(section)
    cells = ["" if value is None else f"{value:.{shown}f}"]
    if with_published and metric in _PRINTED:
        place, printed_decimals = _PRINTED[metric]
        pair = published(method.published, method.scale, set_name) if method.published else None
        printed = None if pair is None else pair[place]
        cells.append("" if printed is None else f"{printed:.{printed_decimals}f}")
        cells.append("" if printed is None or value is None else f"{value - printed:+.{shown}f}")
    if with_differences:
        difference = difference_to(first, method, results, set_name, metric)
        cells.append("" if difference is None else interval(difference, shown))
    return cells


def difference_to(first: Method, other: Method, results: Results, set_name: str, metric: str) -> Difference | None:
    """Return the paired difference of a method to the first one on a set; None if there is none."""
    a, b = (results.get(method.key, {}).get(set_name) for method in (first, other))
    if a is None or b is None or first is other:
        return None
    return paired(*({image: each[metric] for image, each in r.per_image.items() if metric in each} for r in (a, b)))


def interval(difference: Difference, shown: int) -> str:
    """Return a difference as text, ``+0.123 ± 0.045``; a star says that its interval leaves out zero."""
    if math.isnan(difference.half):
        return f"{difference.mean:+.{shown}f}"
    return f"{difference.mean:+.{shown}f} ± {difference.half:.{shown}f}{'*' if difference.is_clear else ''}"


def _notes(
    methods: Sequence[Method],
    results: Results,
    metrics: Mapping[str, Mapping[str, Any]],
    sets: Sequence[str],
    with_published: bool,
    with_differences: bool,
) -> list[str]:
    notes = []
    counts = {name: len(next(each[name] for each in results.values() if name in each).per_image) for name in sets}
    notes.append("images: " + ", ".join(f"{name} {count}" for name, count in counts.items()) + ".")
    notes.append("measured: " + "; ".join(f"{name}: {settings(section)}" for name, section in metrics.items()) + ".")
    if with_published:
        rows = {m.label: rows_of(m.published, m.scale) for m in methods if m.published}
        notes += sources(row for each in rows.values() for row in each if row.quality)
        for method in methods:
            for row in rows.get(method.label, ()):
                notes += quality_note(method.label, row, results.get(method.key, {}), method.source)
    if with_differences and len(methods) > 1:
        notes.append(
            f"against the first: mean over the images of the difference to {methods[0].label}, ± half of its "
            f"{LEVEL:.0%} interval (Student's t, paired by image); *: the interval leaves out zero."
        )
    return notes
