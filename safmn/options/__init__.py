"""Option files: YAML with BasicSR's keys and ours, checked as a whole before anything is built.

Reading order: ``types`` (what may stand in a file), ``load`` (:func:`load_options`), ``reader`` (YAML), ``typed``
(types), ``signatures`` and ``components`` (what a network, a loss, a data set accepts), ``rules`` (what makes sense
together), ``compare`` (writing options down, telling them apart).
"""

from __future__ import annotations

from safmn.options.differences import differences, dump
from safmn.options.load import load_options
from safmn.options.types import (
    DistParams,
    Expectation,
    LoggerSection,
    Options,
    PathOptions,
    TrainSection,
    ValSection,
)

__all__ = [
    "DistParams",
    "Expectation",
    "LoggerSection",
    "Options",
    "PathOptions",
    "TrainSection",
    "ValSection",
    "differences",
    "dump",
    "load_options",
]
