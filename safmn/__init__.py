"""SAFMN: a framework for efficient image super-resolution.

Importing this package makes ``basicsr`` importable (:mod:`safmn.compat`) and registers every component of ours in
BasicSR's registries; after it ``basicsr.archs.build_network({"type": "SAFMN", ...})`` works. It has no other effect.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Each of these packages registers its components when it is imported.
for _package in ("archs", "losses", "metrics", "data", "training.models"):
    importlib.import_module(f"safmn.{_package}")

_LAZY = {"load_network": "safmn.weights", "Upscaler": "safmn.inference", "imresize": "safmn.imaging"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'safmn' has no attribute {name!r}")
