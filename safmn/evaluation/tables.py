"""Tables with grouped columns, written as Markdown, LaTeX, CSV or HTML."""

from __future__ import annotations

import csv
import html
import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safmn.errors import OptionError
from safmn.system.console import table as markdown_table
from safmn.system.files import write_atomically

FORMATS = (".md", ".tex", ".csv", ".html")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: what it holds, such as ``params (K)``. Neighbours with the same title form a group.
        origin: ``measured``, ``published``, ``difference``, or empty where that is no question.
    """

    title: str
    origin: str = ""

    @property
    def heading(self) -> str:
        """The title and the origin in one line."""
        return f"{self.title}, {self.origin}" if self.origin else self.title


@dataclass
class Table:
    """A table as text, cell by cell.

    Attributes:
        title: the heading.
        columns: the columns; the first holds names.
        rows: the cells of each row; empty where there is nothing to show.
        notes: sentences below the table.
    """

    title: str
    columns: list[Column]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def without_empty_columns(self) -> Table:
        """Return the table without the columns in which no row has a cell."""
        kept = [i for i in range(len(self.columns)) if any(row[i] for row in self.rows)]
        return Table(
            self.title, [self.columns[i] for i in kept], [[row[i] for i in kept] for row in self.rows], self.notes
        )

    def groups(self) -> list[tuple[str, int]]:
        """Return the titles of neighbouring columns with the same title, and how many they are."""
        return [(title, len(list(each))) for title, each in itertools.groupby(c.title for c in self.columns)]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [f"## {self.title}", "", self.console()]
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def console(self) -> str:
        """Return the bare table in Markdown, as terminals show it."""
        return markdown_table([column.heading for column in self.columns], self.rows)

    def latex(self) -> str:
        """Return the table in LaTeX, for the package booktabs, with a line of groups above the columns' origins."""
        count = len(self.columns)
        lines = [
            f"% {self.title}. Needs \\usepackage{{booktabs}}.",
            rf"\begin{{tabular}}{{l{'r' * (count - 1)}}}",
            r"\toprule",
        ]
        heads, rules, place = [], [], 1
        for title, width in self.groups():
            text = _tex(title)
            heads.append(text if width == 1 else rf"\multicolumn{{{width}}}{{c}}{{{text}}}")
            rules += [rf"\cmidrule(lr){{{place}-{place + width - 1}}}"] if width > 1 else []
            place += width
        lines.append(f"{' & '.join(heads)} \\\\")
        if any(column.origin for column in self.columns):
            lines += [" ".join(rules)] if rules else []
            lines.append(f"{' & '.join(_tex(column.origin) for column in self.columns)} \\\\")
        lines.append(r"\midrule")
        lines += [f"{' & '.join(_tex(cell) for cell in row)} \\\\" for row in self.rows]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [f"% {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return the cells with one line of headings. Notes are left out."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.heading for column in self.columns])
        writer.writerows(self.rows)
        return text.getvalue()

    def html_table(self) -> str:
        """Return the table as HTML elements, without a page around them."""
        title = html.escape
        origins = any(column.origin for column in self.columns)
        top = "".join(
            f'<th colspan="{width}">{title(name)}</th>' if width > 1 else f"<th>{title(name)}</th>"
            for name, width in self.groups()
        )
        second = "".join(f"<th>{title(column.origin)}</th>" for column in self.columns)
        body = "\n".join(
            "<tr>"
            + "".join(
                f'<td class="{title(column.origin)}">{title(cell)}</td>'
                for cell, column in zip(row, self.columns, strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        notes = "".join(f"<li>{title(note)}</li>" for note in self.notes)
        return (
            f"<table>\n<caption>{title(self.title)}</caption>\n<thead><tr>{top}</tr>"
            + (f"<tr>{second}</tr>" if origins else "")
            + f"</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
            + (f"<ul>{notes}</ul>\n" if notes else "")
        )


def write(tables: Sequence[Table], path: Path) -> None:
    """Write tables to a file in the format of its ending.

    Raises:
        OptionError: the ending is none of :data:`FORMATS`.
    """
    check_ending(path)
    forms: dict[str, Callable[[Table], str]] = {".md": Table.markdown, ".tex": Table.latex, ".csv": Table.csv}
    each = forms.get(path.suffix)
    write_atomically(path, _page(tables) if each is None else "\n".join(each(table) for table in tables))


def check_ending(path: Path) -> None:
    """Raise OptionError if no table can be written to a file of this name."""
    if path.suffix not in FORMATS:
        raise OptionError(f"-o {path}: the ending must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


_STYLE = """body{font:14px/1.45 system-ui,sans-serif;margin:2rem;color:#18181b;background:#fff}
table{border-collapse:collapse;margin:0 0 1rem}caption{font-weight:600;text-align:left;padding:.4rem 0}
th,td{padding:.2rem .6rem;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}thead tr:last-child th{border-bottom:1px solid #71717a}
th[colspan]{text-align:center}tbody tr:nth-child(even){background:#f4f4f5}td.published{color:#71717a}
@media(prefers-color-scheme:dark){body{color:#e4e4e7;background:#18181b}tbody tr:nth-child(even){background:#27272a}
td.published{color:#a1a1aa}}"""


def _page(tables: Sequence[Table]) -> str:
    body = "\n".join(table.html_table() for table in tables)
    head = f'<meta charset="utf-8"><title>{html.escape(tables[0].title if tables else "")}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}</body></html>\n'
    )


_TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "−": "$-$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {sign: f"${sign}$" for sign in "<>|"}  # other characters in LaTeX's default font encoding


def _tex(text: str) -> str:
    """Return text with LaTeX's special characters escaped.

    >>> _tex("RFDN_x4 (5%)")
    'RFDN\\\\_x4 (5\\\\%)'
    """
    text = re.sub(r"^-(?=\d)", "−", text)  # a minus sign, no hyphen
    return re.sub(r"[\\±−~^&%$#_{}<>|]", lambda found: _TEX.get(found[0], f"\\{found[0]}"), text)
