"""Which values of a metric are better."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from safmn.errors import OptionError
from safmn.registry import METRIC_REGISTRY, find


def lower_is_better(section: Mapping[str, Any]) -> bool:
    """Return whether lower values are better: as ``better`` of the section says, else as the metric itself declares.

    Without either, higher values are better, as in BasicSR.
    """
    stated = section.get("better")
    if stated is None:
        with contextlib.suppress(OptionError, KeyError):
            stated = getattr(find(METRIC_REGISTRY, section["type"]), "better", None)
    return stated == "lower"
