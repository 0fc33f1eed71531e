"""Sentences about measured scores that differ from the published ones by more than rounding, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from safmn.evaluation.published import Row
from safmn.evaluation.scoring import SetResult
from safmn.weights import zoo

_METRICS = {"psnr": ("dB", 3, 0.006), "ssim": ("SSIM", 4, 0.00006)}
"""Metric -> unit, decimals, and the largest gap of a rounded figure: half of its last digit, and a little more."""


def quality_note(label: str, row: Row | None, results: Mapping[str, SetResult], source: str | None) -> list[str]:
    """Return one sentence if scores of a method differ from its published ones, otherwise none.

    Args:
        label: name of the method.
        row: its published row.
        results: set -> scores.
        source: the weights or images that were scored.
    """
    gaps = [text for name in results if row is not None and (text := _gaps(name, row, results[name]))]
    if row is None or not gaps:
        return []
    return [f"{label}: {'; '.join(gaps)} from the published row: {_reason(row, source)}."]


def _gaps(name: str, row: Row, result: SetResult) -> str:
    """Return the gaps on a set as text, ``Set5 +0.090 dB, +0.0018 SSIM``; empty if there is none."""
    printed = dict(zip(_METRICS, row.quality.get(name, (None, None)), strict=True))
    found = []
    for metric, (unit, decimals, least) in _METRICS.items():
        value, figure = result.mean.get(metric), printed[metric]
        if value is not None and figure is not None and abs(value - figure) > least:
            found.append(f"{value - figure:+.{decimals}f} {unit}")
    return f"{name} {', '.join(found)}" if found else ""


def _reason(row: Row, source: str | None) -> str:
    if source in zoo.entries():
        return f"{source} was trained for this package, not by the authors (docs/weights.md)"
    if row.quality_note:
        return row.quality_note
    return f"other weights or images than the authors', or another evaluation ({source})"
