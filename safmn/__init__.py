"""SAFMN: a framework for efficient image super-resolution.

Importing this package makes ``basicsr`` importable (:mod:`safmn.compat`) and lets it know all of SAFMN's components:
``basicsr.archs.build_network({"type": "SAFMN", ...})`` works. It has no other effect, and takes little time: torch and
the components are imported when ``basicsr`` is, or on first use.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from safmn import compat

__version__ = "1.0.0"

compat.install()

_LAZY = {"load_network": "safmn.weights", "Upscaler": "safmn.inference", "imresize": "safmn.imaging"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"safmn.{name}") is not None:
        return importlib.import_module(f"safmn.{name}")
    raise AttributeError(f"module 'safmn' has no attribute {name!r}")
