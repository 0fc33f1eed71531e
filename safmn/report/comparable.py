"""Whether the same metric of several runs or tests means the same."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from safmn.registry import METRIC_REGISTRY, find, names

_WITHOUT_EFFECT = ("better", "fetch")
_NOT_GIVEN = object()


class Measured(Protocol):
    """A run or a test.

    Attributes:
        name: its name.
        options: content of the option file; empty if unknown.
    """

    name: str
    options: dict[str, Any]


def scale_of(source: Measured) -> int | None:
    """Return the scale of a run or test; None if it is unknown."""
    scale = getattr(source, "scale", None) or source.options.get("scale")
    return scale if isinstance(scale, int) else None


def scales_of(sources: Sequence[Measured]) -> list[int]:
    """Return the scales of runs or tests, each once, the smallest first."""
    return sorted({scale for scale in map(scale_of, sources) if scale is not None})


def incomparable(sources: Sequence[Measured], metrics: Sequence[str]) -> dict[str, str]:
    """Return why the values of a metric cannot be compared, by metric, in sentences; empty if they can.

    They cannot if the scales differ, or if the option files define a metric of this name differently.

    Args:
        sources: runs or tests; those whose option file is unknown count as equal to the others.
        metrics: the metrics in question.
    """
    scales = scales_of(sources)
    if len(scales) > 1:
        text = " and ".join(f"x{scale}" for scale in scales)
        return dict.fromkeys(metrics, f"Scores are not comparable, because the scales differ ({text}).")
    found: dict[str, str] = {}
    for metric in metrics:
        known = [(source.name, section) for source in sources if (section := _section(source, metric))]
        for name, section in known[1:]:
            if (difference := _difference(known[0][1], section)) and metric not in found:
                key, one, other = difference
                found[metric] = (
                    f"{metric} is not comparable, because its {key} is {one} in {known[0][0]} and {other} in {name}."
                )
    return found


def _section(source: Measured, metric: str) -> dict[str, Any]:
    val = source.options.get("val")
    sections = val.get("metrics") if isinstance(val, Mapping) else None
    section = sections.get(metric) if isinstance(sections, Mapping) else None
    return dict(section) if isinstance(section, Mapping) else {}


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first key in which two sections of a metric differ, with both values; None if they are equal."""
    for key in dict.fromkeys([*one, *other]):
        values = [section[key] if key in section else _default(section, key) for section in (one, other)]
        if key not in _WITHOUT_EFFECT and values[0] != values[1]:
            first, second = ("not given" if value is _NOT_GIVEN else value for value in values)
            return key, first, second
    return None


def _default(section: Mapping[str, Any], key: str) -> Any:
    kind = section.get("type")
    if kind not in names(METRIC_REGISTRY):
        return _NOT_GIVEN
    parameter = inspect.signature(find(METRIC_REGISTRY, kind)).parameters.get(key)
    return _NOT_GIVEN if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
