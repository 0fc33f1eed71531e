"""Published results of super-resolution networks: quality on the benchmark sets, cost, time and memory.

The data is ``published.tsv``, one row per table, scale and network, each with its source. Quality is PSNR in dB and
SSIM, both on the Y channel with a crop border equal to the scale, for LR images made with MATLAB's bicubic. Cost is for
a 1280x720 output: parameters, multiply-adds in 10^9, activations (outputs of convolutions) in 10^6. Time is in
milliseconds, memory in MB, both on the authors' GPU.

Tables: ``efficient``, ``classic``, ``runtime`` and ``winners`` are those of Sun, Dong, Tang, Pan, "Spatially-Adaptive
Feature Modulation for Efficient Image Super-Resolution", ICCV 2023 (arXiv 2302.13800). ``newer`` has rows of later
papers.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109")
TABLES = ("efficient", "classic", "runtime", "winners")
_FILE = Path(__file__).with_name("published.tsv")
_ALIASES = {"bsd100": "b100", "bsds100": "b100"}
_UNITS = {"K": 1.0, "M": 1e3}  # parameters, in thousands


class Figure(NamedTuple):
    """A printed number.

    Attributes:
        value: the number; parameters in thousands.
        half: half a unit of the last printed digit, the largest difference that rounding explains.
        text: the number as printed.
    """

    value: float
    half: float
    text: str

    def agrees(self, measured: float) -> bool:
        """Return whether ``measured`` rounds to this number (with a tenth of a unit of tolerance)."""
        return abs(measured - self.value) <= 1.2 * self.half


@dataclass(frozen=True)
class Row:
    """One row of a published table; ``None`` for numbers that the source does not give.

    Attributes:
        table: name of the table.
        network: name of the network.
        scale: scale of super-resolution.
        quality: set -> (PSNR, SSIM).
        params: parameters in thousands.
        madds: multiply-adds in 10^9.
        acts: activations in 10^6.
        memory: GPU memory in MB.
        time: milliseconds per image.
        source: where the row comes from.
        note: why fvcore counts something else than the source prints; empty if it agrees.
        quality_note: why published weights score something else than the source prints; empty if they agree.
    """

    table: str
    network: str
    scale: int
    quality: Mapping[str, tuple[float, float | None]]
    params: Figure | None = None
    madds: Figure | None = None
    acts: Figure | None = None
    memory: Figure | None = None
    time: Figure | None = None
    source: str = ""
    note: str = field(default="", compare=False)
    quality_note: str = field(default="", compare=False)


def _figure(text: str) -> Figure | None:
    if not text:
        return None
    unit = _UNITS.get(text[-1], 1.0)
    digits = text.rstrip("KM")
    decimals = len(digits.partition(".")[2])
    return Figure(float(digits) * unit, 0.5 * 10**-decimals * unit, text)


def _pair(text: str) -> tuple[float, float | None]:
    psnr, _, ssim = text.partition("/")
    return float(psnr), None if ssim in ("", "-") else float(ssim)


def _row(cells: Mapping[str, str]) -> Row:
    return Row(
        cells["table"],
        cells["method"],
        int(cells["scale"]),
        {name: _pair(cells[name]) for name in SETS if cells[name]},
        params=_figure(cells["params"]),
        madds=_figure(cells["madds_G"]),
        acts=_figure(cells["acts_M"]),
        memory=_figure(cells["memory_MB"]),
        time=_figure(cells["time_ms"]),
        source=cells["source"],
        note=cells["note"],
        quality_note=cells["quality_note"],
    )


@functools.cache
def rows(table: str | None = None, scale: int | None = None) -> tuple[Row, ...]:
    """Return the published rows in the order of the tables, of one table and scale or of all."""
    with _FILE.open(encoding="utf-8", newline="") as file:
        found = [_row(cells) for cells in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return tuple(row for row in found if table in (None, row.table) and scale in (None, row.scale))


def published(network: str, scale: int, set_name: str) -> tuple[float, float | None] | None:
    """Return the published (PSNR in dB, SSIM) of a network on a set, Y channel, crop = scale; ``None`` if unpublished.

    Args:
        network: a name as in :func:`rows`, such as ``SAFMN`` or ``SAFMN-L``; case does not matter.
        scale: scale of super-resolution.
        set_name: ``Set5``, ``Set14``, ``B100`` (also ``BSD100``), ``Urban100`` or ``Manga109``; case does not matter.
    """
    wanted = set_name.lower()
    wanted = _ALIASES.get(wanted, wanted)
    for row in rows_of(network, scale):
        for name, pair in row.quality.items():
            if name.lower() == wanted:
                return pair
    return None


def rows_of(network: str, scale: int) -> tuple[Row, ...]:
    """Return the rows of all tables of a network at a scale; case does not matter."""
    return tuple(row for row in rows(None, scale) if row.network.lower() == network.lower())


def joined_row(network: str, scale: int) -> Row | None:
    """Return what all tables say of a network at a scale, in one row: of each figure the first that is printed."""
    found = rows_of(network, scale)
    if not found:
        return None
    joined: dict[str, Any] = {"quality": {name: pair for row in reversed(found) for name, pair in row.quality.items()}}
    for name in ("source", "note", "quality_note"):
        joined[name] = "; ".join(dict.fromkeys(text for row in found if (text := getattr(row, name))))
    for name in ("params", "madds", "acts", "memory", "time"):
        joined[name] = next((figure for row in found if (figure := getattr(row, name)) is not None), None)
    return replace(found[0], **joined)


def network_name(section: Mapping[str, Any]) -> str | None:
    """Return the name in the tables of the network that a ``network_g`` section describes; ``None`` for others.

    The names are those of the published sizes that a network declares (:attr:`safmn.archs.family.Member.sizes`). The
    scale is not part of the name.
    """
    from safmn.evaluation.sizes import published_size  # with the networks, and so with torch

    size = published_size(section)
    return None if size is None else size.method
