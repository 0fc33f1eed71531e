"""Read a network's arguments from the shapes of its state dict: helpers for the ``arguments_from`` methods."""

from __future__ import annotations

import math
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]
"""Names of a state dict with their shapes. Every shape has at least one dimension, and no dimension is zero."""


def length(shapes: Shapes, prefix: str) -> int:
    """Return the number of modules in a sequence: ``prefix.0.``, ``prefix.1.``, ... up to the first gap."""
    found = {name[len(prefix) + 1 :].split(".")[0] for name in shapes if name.startswith(prefix + ".")}
    number = 0
    while str(number) in found:
        number += 1
    return number


def ffn_scale(dim: int, hidden: int) -> float:
    """Return the shortest decimal ``f`` with ``int(dim * f) == hidden``: 2.0 for 72 and 36, 1.7 for 61 and 36."""
    for digits in range(1, 17):
        near = round(hidden / dim, digits)
        for candidate in (near, round(near + 10**-digits, digits)):
            if int(dim * candidate) == hidden:
                return candidate
    return hidden / dim


def shuffle_scale(channels: int, image_channels: int = 3) -> int:
    """Return the scale of a pixel shuffle from ``channels`` to ``image_channels``."""
    return math.isqrt(channels // image_channels)
