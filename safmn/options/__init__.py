"""Option files: YAML with BasicSR's keys and our own, checked completely before anything is built.

Suggested reading order:

- ``types``: the sections of a file; ``load``: :func:`load_options`; ``reader``: YAML; ``typed``: conversion to types;
- ``signatures``, ``components``, ``losses`` and ``datasets``: what networks, losses and data sets accept;
- ``rules``: keys that depend on each other; ``problems``: error messages; ``plugins``: ``imports``;
- ``differences``: write and compare options; ``described``, ``schema``, ``reference``: JSON Schema and documentation.
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
