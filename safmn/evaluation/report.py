"""Report the scores of a test beside the published and the expected values, as table, JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safmn.evaluation.published import published
from safmn.evaluation.scoring import SetResult
from safmn.options import Expectation
from safmn.system.console import table
from safmn.system.files import write_atomically

_PAPER = {"calculate_psnr": 0, "calculate_ssim": 1}  # metric -> its index in a published pair
_DECIMALS = {"calculate_psnr": 3}
_PAPER_DECIMALS = {"calculate_psnr": 2}
_OTHER_DECIMALS = 4


@dataclass(frozen=True)
class Scoreboard:
    """The results of one test.

    Attributes:
        metrics: metric -> its section of the option file, in the order of the columns.
        network_name: name of the network in published tables, if it has one.
        scale: scale of super-resolution.
        results: set -> scores.
        failures: set -> why it could not be tested.
        left_out: missing set that is available on request only -> how to get it.
        expect: set -> expected means, with tolerances.
        facts: further entries of the report: weights, option file, versions, device.
        options: content of the option file, for the JSON.
        data: set -> its section of the option file, or what stands for it in a test of weights, for the JSON.
        degraded: sets with degraded LQ images, which cannot be compared with published values.
    """

    metrics: Mapping[str, Mapping[str, Any]]
    network_name: str | None
    scale: int
    results: Mapping[str, SetResult]
    failures: Mapping[str, str]
    expect: Mapping[str, Expectation]
    facts: Mapping[str, Any]
    options: Mapping[str, Any] | None = None
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    degraded: Collection[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    def drifts(self) -> list[str]:
        """Return one line for each mean that differs from its expected value; skip sets that could not be tested."""
        return [
            f"{name}: {metric} is {self._show(metric, found)}, expected {self._show(metric, value)}"
            f" within {expectation.tolerance[metric]:g}"
            for name, expectation in self.expect.items()
            if name in self.results
            for metric, value in expectation.values.items()
            for found in [self.results[name].mean.get(metric, math.nan)]
            if not abs(found - value) <= expectation.tolerance[metric]  # also true for NaN
        ]

    def garbage(self) -> list[str]:
        """Return one line for each set with output pixels that the guard of ``safmn upscale`` would replace."""
        return [
            f"{name}: the guard of safmn upscale would replace {sum(result.garbage.values())} pixels by bicubic in "
            f"{len(result.garbage)} of {len(result.per_image)} images ({', '.join(list(result.garbage)[:3])}"
            f"{', ...' if len(result.garbage) > 3 else ''}); the scores are without the guard"
            for name, result in self.results.items()
            if result.garbage
        ]

    def paper(self, set_name: str) -> dict[str, float]:
        """Return the published values of this network on a set, for metrics measured as in papers (Y, crop = scale)."""
        known = self.network_name is not None and set_name not in self.degraded
        pair = published(self.network_name, self.scale, set_name) if known else None  # type: ignore[arg-type]
        if pair is None:
            return {}
        values = {
            metric: pair[_PAPER[section["type"]]]
            for metric, section in self.metrics.items()
            if section["type"] in _PAPER
            and section.get("test_y_channel") is True
            and section.get("crop_border") == self.scale
        }
        return {metric: value for metric, value in values.items() if value is not None}

    def table(self) -> str:
        """Return a Markdown table with one row per set: measured values, published values and differences."""
        compared = {metric for name in self.results for metric in self.paper(name)}
        header = ["set", "images"]
        for metric in self.metrics:
            header += [metric, "published", "difference"] if metric in compared else [metric]
        rows = []
        for name, result in self.results.items():
            row: list[object] = [name, len(result.per_image)]
            for metric in self.metrics:
                value, paper = result.mean.get(metric), self.paper(name).get(metric)
                row.append(self._show(metric, value))
                if metric in compared:
                    row.append(self._show(metric, paper, _PAPER_DECIMALS))
                    row.append("" if value is None or paper is None else self._show(metric, value - paper, sign="+"))
            rows.append(row)
        return table(header, rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        sets = {
            name: {
                "images": len(result.per_image),
                "seconds": round(result.seconds, 3),
                "mean": result.mean,
                "published": self.paper(name),
                "pixels the guard would replace": result.garbage,
                "per_image": result.per_image,
            }
            for name, result in self.results.items()
        }
        outcome = {
            "sets": sets,
            "failed": dict(self.failures),
            "left out": dict(self.left_out),
            "drifted": self.drifts(),
        }
        data = {name: dict(section) for name, section in self.data.items()}
        return {**self.facts, **outcome, "options": self.options, "data": data}

    def write(self, folder: Path) -> None:
        """Write ``metrics.json`` and ``metrics.md`` into ``folder``, each atomically."""
        text = json.dumps(_finite(self.as_dict()), indent=2, allow_nan=False)
        write_atomically(folder / "metrics.json", text + "\n")
        write_atomically(folder / "metrics.md", self._markdown())

    def _markdown(self) -> str:
        lines = [f"# {self.facts['name']}", "", self.table() if self.results else "No set could be tested."]
        absent = [f"{name}: {how}" for name, how in self.left_out.items()]
        notes = (
            ("Failed", self.failures.values()),
            ("Left out", absent),
            ("Drifted", self.drifts()),
            ("Garbage", self.garbage()),
        )
        for title, each in notes:
            lines += ["", f"## {title}", "", *(f"- {line}" for line in each)] if each else []
        lines += ["", "## How", ""]
        for key, value in self.facts.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
            lines.append(f"- {key}: {shown}")
        return "\n".join(lines) + "\n"

    def _show(
        self, metric: str, value: float | None, decimals_of: Mapping[str, int] = _DECIMALS, sign: str = ""
    ) -> str:
        decimals = decimals_of.get(self.metrics[metric]["type"], _OTHER_DECIMALS)
        return "" if value is None else f"{value:{sign}.{decimals}f}"


def _finite(value: Any) -> Any:
    """Replace infinity (the PSNR of equal images) and NaN by ``"inf"`` and ``"nan"``: JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
