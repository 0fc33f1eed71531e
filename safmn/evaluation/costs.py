"""Tables of what networks cost: parameters, multiply-adds and activations, beside the published figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from safmn.archs.complexity import Complexity, complexity
from safmn.errors import OptionError, first_line
from safmn.evaluation.applying import window_of
from safmn.evaluation.methods import Method
from safmn.evaluation.published import Figure, Row, rows_of
from safmn.evaluation.tables import Column, Table

OUTPUT = (720, 1280)
"""Height and width of the output image for which the field counts."""

_QUANTITIES = ("params (K)", "multiply-adds (G)", "activations (M)")


@dataclass(frozen=True)
class Cost:
    """The cost of a method, counted, and the published row.

    Attributes:
        method: the method.
        counted: the counts; None for bicubic and images.
        row: the published row, of any table.
    """

    method: Method
    counted: Complexity | None
    row: Row | None

    @property
    def values(self) -> tuple[float, float, float] | None:
        """The counts in the units of tables: parameters in thousands, multiply-adds in 10^9, activations in 10^6."""
        if self.counted is None:
            return None
        params, madds, acts = self.counted
        return params / 1e3, madds / 1e9, acts / 1e6

    @property
    def figures(self) -> tuple[Figure | None, Figure | None, Figure | None]:
        """The published figures in the same order."""
        return (None, None, None) if self.row is None else (self.row.params, self.row.madds, self.row.acts)

    def differs(self) -> list[str]:
        """Return the quantities whose published figure is not the rounded count."""
        if self.values is None:
            return []
        pairs = zip(_QUANTITIES, self.values, self.figures, strict=True)
        return [name for name, value, figure in pairs if figure is not None and not figure.agrees(value)]


def cost_of(method: Method, output: tuple[int, int] = OUTPUT, table: str | None = None) -> Cost:
    """Count a method's network, and find its published row.

    Args:
        method: the method.
        output: height and width of the output image.
        table: the published table to prefer.

    Raises:
        OptionError: the network cannot be counted.
    """
    row = published_row(method, table) if output == OUTPUT else None
    if method.network is None:
        return Cost(method, None, row)
    for device in ("meta", "cpu"):  # the second for a user's network that looks at values
        try:
            return Cost(method, complexity(method.network, output, device=device), row)
        except Exception as error:  # a user's network may raise any exception
            failure = error
    raise OptionError(
        f"{method.label}: its operations cannot be counted: {type(failure).__name__}: {first_line(failure)}"
    ) from failure


def windows_of(network: nn.Module) -> int:
    """Return the multiple to which images are padded for a network whose layers have windows (a user's Swin, HAT)."""
    return 1 if hasattr(network, "window") else window_of(network)


def published_row(method: Method, table: str | None = None, *, measured: str = "params") -> Row | None:
    """Return a published row of a method, if possible one of ``table`` and with a figure ``measured``."""
    if method.published is None:
        return None

    def order(row: Row) -> tuple[bool, bool]:
        return getattr(row, measured) is None, row.table != table

    return min(rows_of(method.published, method.scale), key=order, default=None)


def cost_table(costs: Sequence[Cost], output: tuple[int, int] = OUTPUT) -> Table:
    """Return a table of counts, published figures and differences, with the reasons of differences as notes."""
    columns = [Column("network")]
    for name in _QUANTITIES:
        columns += [Column(name, "measured"), Column(name, "published"), Column(name, "difference")]
    columns.append(Column("halo (px)"))
    table = Table(f"Cost of one output image of {output[1]}x{output[0]}", columns)
    for cost in costs:
        cells = [cost.method.label]
        for value, figure, decimals in zip(cost.values or [None] * 3, cost.figures, (2, 3, 2), strict=True):
            cells += _cells(value, figure, decimals)
        halo = getattr(cost.method.network, "halo", "")
        table.rows.append([*cells, "frame" if halo is None else str(halo)])
    table.notes += [
        "measured: fvcore's rules (safmn/archs/complexity.py); a multiply-add counts as one operation.",
        *sources(cost.row for cost in costs),
        *differences((cost.method.label, cost) for cost in costs),
    ]
    return table.without_empty_columns()


def _cells(value: float | None, figure: Figure | None, decimals: int) -> list[str]:
    measured = "" if value is None else f"{value:,.{decimals}f}"
    if figure is None:
        return [measured, "", ""]
    if value is None:
        return [measured, figure.text, ""]
    return [measured, figure.text, "rounding" if figure.agrees(value) else f"{value / figure.value - 1:+.1%}"]


def differences(rows: Iterable[tuple[str, Cost]]) -> list[str]:
    """Return a sentence for each row whose published figures are not the rounded counts: the reason, if known.

    Args:
        rows: the label of a row and its cost.
    """
    return [
        f"{_with_scale(label, cost.method.scale)}: {', '.join(each)}: "
        + (cost.row.note if cost.row and cost.row.note else "no reason is known")
        for label, cost in rows
        if (each := cost.differs())
    ]


def _with_scale(label: str, scale: int) -> str:
    """Return the label with the scale, once."""
    return label if label.endswith((f" x{scale}", f"_x{scale}")) else f"{label} x{scale}"


def sources(rows: Iterable[Row | None]) -> list[str]:
    """Return the sentence that names the sources of published rows."""
    found = dict.fromkeys(source for row in rows if row is not None for source in row.source.split("; "))
    return [f"published: {', '.join(found)}."] if found else []
