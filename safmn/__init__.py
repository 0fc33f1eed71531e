"""SAFMN: a framework for efficient image super-resolution.

Importing this package makes ``basicsr`` importable (:mod:`safmn.compat`) and registers all of SAFMN's components in
BasicSR's registries. Then ``basicsr.archs.build_network({"type": "SAFMN", ...})`` works. It has no other effect.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "1.0.0"

# Importing one of these packages registers its components.
for _package in ("archs", "losses", "metrics", "data", "training.models"):
    importlib.import_module(f"safmn.{_package}")

_LAZY = {"load_network": "safmn.weights", "Upscaler": "safmn.inference", "imresize": "safmn.imaging"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'safmn' has no attribute {name!r}")
