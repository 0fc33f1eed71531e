"""Parts of a page: charts, tables, comparisons of images, facts. Each function returns HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safmn.options.differences import to_yaml
from safmn.report.page import escape, to_json

MAX_POINTS = 20_000
"""Of a longer curve every n-th point is drawn, and the chart says so."""


@dataclass(frozen=True)
class Curve:
    """A curve of a chart.

    Attributes:
        series: index of its run in ``Page.series``, which gives its colour.
        points: (iteration, value); values that are not finite are gaps.
    """

    series: int
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class View:
    """One version of an image.

    Attributes:
        label: LQ, bicubic, GT, or the name of a run or method.
        images: key of ``Page.image`` for each iteration; iteration 0 where there is only one version.
        scores: a line of text for each iteration, such as ``30.12 dB``.
        pixelated: whether to show pixels as squares, as for the LQ image.
    """

    label: str
    images: Mapping[int, str]
    scores: Mapping[int, str] = field(default_factory=dict)
    pixelated: bool = False


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    unit: str = "",
    hint: str = "",
    noisy: bool = False,
    marks: Sequence[tuple[int, int]] = (),
) -> str:
    """Return a line chart over iterations.

    Args:
        unit: of the values, such as ``dB``; it is shown beside the title.
        hint: a few words, shown beside the title.
        noisy: whether the page's smoothing applies, and its logarithmic scale.
        marks: (series, iteration) to mark at the axis, such as skipped steps.
    """
    drawn, step = [], 1
    for curve in curves:
        every = math.ceil(len(curve.points) / MAX_POINTS) or 1
        step = max(step, every)
        points = curve.points[::every]
        drawn.append({"series": curve.series, "x": [x for x, _ in points], "y": [y for _, y in points]})
    data = {"title": title, "unit": unit, "noisy": noisy, "curves": drawn, "marks": [list(mark) for mark in marks]}
    words = ", ".join(each for each in (unit, hint, f"every {step}th point" if step > 1 else "") if each)
    small = f" <small>({escape(words)})</small>" if words else ""
    return (
        f'<figure class="chart" tabindex="0"><figcaption>{escape(title)}{small}</figcaption><div class="plot"></div>'
        f'<script type="application/json">{to_json(data)}</script></figure>'
    )


def charts(parts: Sequence[str]) -> str:
    """Return charts in a grid that has as many columns as fit."""
    return f'<div class="charts">{"".join(parts)}</div>'


def chart_controls(*, noisy: bool = True) -> str:
    """Return the switches of all charts of the page: smoothing, logarithmic scale, the range of iterations."""
    smoothing = (
        '<label>Smoothing <input type="range" id="smoothing" min="0" max="0.99" step="0.01" value="0.6">'
        '<output id="smoothing-value">0.60</output></label>'
        '<label><input type="checkbox" id="log"> Logarithmic losses</label>'
    )
    return (
        f'<div class="controls">{smoothing if noisy else ""}<button type="button" id="whole-range" disabled>'
        'All iterations</button><span class="hint">Drag across a chart to enlarge a range; arrow keys read values.'
        "</span></div>"
    )


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    sort: tuple[int, bool] | None = None,
    marked: Mapping[tuple[int, int], str] | None = None,
    limit: int | None = None,
    kind: str = "",
) -> str:
    """Return a table that is sorted by a click on a heading. Numbers are aligned at the right.

    Args:
        rows: cells: text, or a number with its text as ``(number, text)``.
        sort: (column, ascending) by which the rows are sorted already.
        marked: (row, column) -> class of a cell, such as ``best`` or ``differs``.
        limit: rows shown at first; a button shows the others.
        kind: class of the table: ``keys`` makes the first column wide enough for the keys of an option file.
    """
    heads = []
    for index, name in enumerate(header):
        state = "none" if sort is None or sort[0] != index else "ascending" if sort[1] else "descending"
        heads.append(f'<th scope="col" aria-sort="{state}"><button type="button">{escape(name)}</button></th>')
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for index, cell in enumerate(row):
            look = (marked or {}).get((number, index), "")
            tag = ' scope="row"' if index == 0 else ""
            name = "th" if index == 0 else "td"
            if isinstance(cell, tuple):
                value = "" if cell[0] is None or math.isnan(cell[0]) else repr(float(cell[0]))
                cells.append(f'<{name}{tag} class="number {look}" data-value="{value}">{escape(cell[1])}</{name}>')
            else:
                cells.append(f'<{name}{tag} class="{look}">{escape(cell)}</{name}>')
        hidden = ' class="more"' if limit is not None and number >= limit else ""
        lines.append(f"<tr{hidden}>{''.join(cells)}</tr>")
    more = ""
    if limit is not None and len(rows) > limit:
        more = f'<button type="button" class="show-more">Show all {len(rows)} rows</button>'
    return (
        f'<div class="table"><table class="{f"sortable {kind}".strip()}"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{more}"
    )


def number(value: float | None, decimals: int = 4) -> tuple[float, str]:
    """Return a cell for a number."""
    if value is None or math.isnan(value):
        return math.nan, ""
    return value, f"{value:.{decimals}f}"


def comparison(
    title: str,
    views: Sequence[View],
    *,
    size: tuple[int, int],
    detail: tuple[int, int, int, int] | None = None,
    before: int = 0,
    after: int = 1,
    begin_with_detail: bool = False,
    note: str = "",
) -> str:
    """Return versions of one image: a before/after slider over two of them, and all side by side with linked zoom.

    A single version is shown with zoom only.

    Args:
        size: (height, width) of the versions; smaller ones, such as LQ, are enlarged.
        detail: (x, y, width, height), a part worth a look.
        before, after: indices of the two versions that are shown first.
        begin_with_detail: show the detail first instead of the whole image.
    """
    data = {
        "title": title,
        "height": size[0],
        "width": size[1],
        "views": [
            {
                "label": view.label,
                "steps": [[step, key, view.scores.get(step, "")] for step, key in sorted(view.images.items())],
                "pixelated": view.pixelated,
            }
            for view in views
        ],
        "detail": list(detail) if detail else None,
        "before": before,
        "after": after,
        "begin": begin_with_detail,
    }
    remark = f'<p class="hint">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="compare"><figcaption>{escape(title)}</figcaption>'
        f'<script type="application/json">{to_json(data)}</script>{remark}</figure>'
    )


def facts(pairs: Mapping[str, object]) -> str:
    """Return a list of names and values."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs.items())
    return f'<dl class="facts">{items}</dl>'


def note(text: str, *, warning: bool = False) -> str:
    """Return a sentence that explains something, or warns."""
    return f'<p class="{"note warning" if warning else "note"}">{escape(text)}</p>'


def details(summary: str, content: str) -> str:
    """Return a part that is closed at first; it is printed open."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def value_text(value: Any) -> str:
    """Return a value of an option file as text in one line: as in YAML, without the quotes of a single text."""
    return value if isinstance(value, str) else to_yaml(value, in_one_line=True)
