"""The field's scatter plot: PSNR over cost, with circles whose area is the number of parameters."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safmn.errors import OptionError
from safmn.evaluation.paper_tables import Entry
from safmn.system.files import atomic_path

_AREA = 0.35  # points^2 for each thousand parameters, unless the largest circle is then larger than this:
_MOST = 1400.0  # points^2
_LEAST = 12.0  # points^2, so that the smallest networks are seen
_PUBLISHED, _MEASURED = "#64748b", "#dc2626"


@dataclass(frozen=True)
class Point:
    """A circle of the plot.

    Attributes:
        label: its name.
        x: multiply-adds in 10^9, or milliseconds.
        psnr: PSNR in dB.
        params: parameters in thousands.
        measured: whether the PSNR was measured here; otherwise it is published.
    """

    label: str
    x: float
    psnr: float
    params: float
    measured: bool


def check_installed() -> None:
    """Raise OptionError if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("plots need matplotlib: pip install matplotlib (or '.[plots]' in a clone of SAFMN)")


def points(found: Sequence[Entry], set_name: str, *, by_time: bool) -> list[Point]:
    """Return the points of table rows: one for a published PSNR, one for a measured one.

    Raises:
        OptionError: no row has a PSNR on this set and a cost.
    """
    result = []
    for entry in found:
        x, params = _x(entry, by_time), _params(entry)
        if x is None or params is None:
            continue
        printed = entry.row.quality.get(set_name) if entry.row is not None else None
        if printed is not None:
            result.append(Point(entry.label, x, printed[0], params, measured=False))
        scores = entry.quality.get(set_name)
        if scores is not None and math.isfinite(scores.mean.get("psnr", math.nan)):
            result.append(Point(entry.measured_as or entry.label, x, scores.mean["psnr"], params, measured=True))
    if not result:
        raise OptionError(f"--set {set_name}: no method has both a PSNR on this set and a cost")
    return result


def _x(entry: Entry, by_time: bool) -> float | None:
    """Return time measured here, or multiply-adds: counted, otherwise published."""
    if by_time:
        return None if entry.speed is None else entry.speed.timing.median * 1e3
    if entry.cost is not None and entry.cost.values is not None:
        return entry.cost.values[1]
    return entry.row.madds.value if entry.row is not None and entry.row.madds is not None else None


def _params(entry: Entry) -> float | None:
    if entry.cost is not None and entry.cost.values is not None:
        return entry.cost.values[0]
    return entry.row.params.value if entry.row is not None and entry.row.params is not None else None


def draw(found: Sequence[Point], path: Path, *, set_name: str, scale: int, by_time: bool) -> None:
    """Write the plot. The ending gives the format: .pdf and .svg are vectors with text as text, .png is 200 dpi."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    settings: Any = {"font.size": 9, "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "safmn"}
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
        for measured, colour, name in ((False, _PUBLISHED, "published"), (True, _MEASURED, "PSNR measured here")):
            those = [point for point in found if point.measured == measured]
            if those:
                axes.scatter(
                    [point.x for point in those],
                    [point.psnr for point in those],
                    s=[_area(point, _unit(found)) for point in those],
                    facecolor=colour,
                    edgecolor=colour,
                    alpha=0.35,
                    label=name,
                )
        _scale_axes(axes, found)
        axes.set_xlabel("time on this machine (ms)" if by_time else "multiply-adds (G) for a 1280x720 output")
        axes.set_ylabel(f"PSNR (dB), {set_name}, x{scale}")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        _legend(axes, found)
        figure.canvas.draw()  # the labels are placed by their size in pixels
        _label(figure, axes, found)
        # Without dates, the same numbers give the same file.
        dates: dict[str, Any] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=200, metadata=dates.get(path.suffix))
        pyplot.close(figure)


def _unit(found: Sequence[Point]) -> float:
    """Return the area of a thousand parameters in points^2."""
    return min(_AREA, _MOST / max(point.params for point in found))


def _area(point: Point, unit: float) -> float:
    return max(point.params * unit, _LEAST)


def _scale_axes(axes: Any, found: Sequence[Point]) -> None:
    """Set the limits, with room for circles and labels; logarithmic for costs that differ more than tenfold."""
    xs, ys = [point.x for point in found], [point.psnr for point in found]
    if max(xs) > 10 * min(xs):
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axes.set_xscale("log")
        axes.set_xlim(min(xs) / 1.7, max(xs) * 2.2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = 0.12 * (max(xs) - min(xs) or max(xs))
        axes.set_xlim(min(xs) - room, max(xs) + 2 * room)
    room = 0.1 * (max(ys) - min(ys) or 1)
    axes.set_ylim(min(ys) - room, max(ys) + 1.4 * room)


def _label(figure: Any, axes: Any, found: Sequence[Point]) -> None:
    """Write each name beside its circle, at the first place where it covers no circle and no other name.

    Circles of one name that cover each other get one name. The line from a name to its circle crosses no other name.
    """
    unit = _unit(found)
    taken = [_circle(figure, axes, point, unit) for point in found]
    names: list[Any] = []  # boxes
    edge = axes.get_window_extent()
    for point in _named(figure, axes, found):
        radius = math.sqrt(_area(point, unit) / math.pi)
        best, least = None, math.inf
        for dx, dy, across, up, near in _places(radius):
            text = axes.annotate(
                point.label.replace("$", r"\$"),  # otherwise a formula
                (point.x, point.psnr),
                (dx, dy),
                textcoords="offset points",
                ha=across,
                va=up,
                fontsize=8,
                color=_MEASURED if point.measured else "#1e293b",
                arrowprops=None
                if near
                else {"arrowstyle": "-", "color": "#64748b", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
            )
            box = _extent(text)
            outside = box.x0 < edge.x0 or box.x1 > edge.x1 or box.y0 < edge.y0 or box.y1 > edge.y1
            covered = sum(_overlap(box, other) for other in taken) + (1e6 if outside else 0)
            covered += (
                0 if near else 100 * sum(_crosses(box, _circle(figure, axes, point, unit), name) for name in names)
            )
            if covered < least:
                if best is not None:
                    best.remove()
                best, least = text, covered
            else:
                text.remove()
            if not least:
                break
        if best is not None:
            taken.append(_extent(best))
            names.append(_extent(best))


def _named(figure: Any, axes: Any, found: Sequence[Point]) -> list[Point]:
    """Return the points that get a name, the smallest first."""
    result: list[Point] = []
    unit = _unit(found)
    for point in sorted(found, key=lambda each: (not each.measured, each.params)):
        circle = _circle(figure, axes, point, unit)
        same = [each for each in result if each.label == point.label]
        if not any(_overlap(circle, _circle(figure, axes, each, unit)) for each in same):
            result.append(point)
    return sorted(result, key=lambda each: each.params)


def _crosses(box: Any, circle: Any, name: Any) -> int:
    """Return how many of the points on the line from a name's box to its circle lie in another name's box."""
    steps = [step / 12 for step in range(1, 12)]
    (x0, y0), (x1, y1) = (((b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2) for b in (box, circle))
    on_line = [(x0 + (x1 - x0) * step, y0 + (y1 - y0) * step) for step in steps]
    return sum(name.x0 <= x <= name.x1 and name.y0 <= y <= name.y1 for x, y in on_line)


def _extent(annotation: Any) -> Any:
    """Return the box of an annotation's text, without its line."""
    from matplotlib.text import Text

    annotation.update_positions(annotation.figure.canvas.get_renderer())
    return Text.get_window_extent(annotation)


def _places(radius: float) -> list[tuple[float, float, str, str, bool]]:
    """Return offsets in points, alignments, and whether they are near, from the right around the circle."""
    places: list[tuple[float, float, str, str, bool]] = []
    for gap in (2.0, 10.0, 20.0, 32.0, 46.0, 62.0):
        far = radius + gap
        slant = far * 0.75
        around = (
            (far, 0.0, "left", "center"),
            (0.0, far, "center", "bottom"),
            (0.0, -far, "center", "top"),
            (-far, 0.0, "right", "center"),
            (slant, slant, "left", "bottom"),
            (slant, -slant, "left", "top"),
            (-slant, slant, "right", "bottom"),
            (-slant, -slant, "right", "top"),
        )
        places += [(*place, gap == 2.0) for place in around]
    return places


def _circle(figure: Any, axes: Any, point: Point, unit: float) -> Any:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((point.x, point.psnr))
    radius = math.sqrt(_area(point, unit) / math.pi) * figure.dpi / 72
    return Bbox([[x - radius, y - radius], [x + radius, y + radius]])


def _overlap(a: Any, b: Any) -> float:
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0


def _legend(axes: Any, found: Sequence[Point]) -> None:
    """Explain colours and areas."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, alpha=0.5, markersize=6, label=name)
        for measured, colour, name in ((False, _PUBLISHED, "published"), (True, _MEASURED, "PSNR measured here"))
        if any(point.measured == measured for point in found)
    ]
    largest, unit = max(point.params for point in found), _unit(found)
    shown = [size for size in (20, 200, 1000, 5000, 40000) if size <= 1.2 * largest and size * unit >= _LEAST / 2]
    diameters = [2 * math.sqrt(max(size * unit, _LEAST) / math.pi) for size in shown]
    for size, diameter in zip(shown, diameters, strict=True):
        name = f"{size} K" if size < 1000 else f"{size // 1000} M"
        circle: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "#cbd5e1", "markersize": diameter}
        handles.append(Line2D([], [], **circle, label=f"{name} parameters"))
    room = max(diameters, default=6.0) / 8  # in units of the font size
    wide = {"labelspacing": max(1.0, room), "handletextpad": max(1.0, room / 2), "borderpad": max(1.0, room / 2)}
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, **wide)
