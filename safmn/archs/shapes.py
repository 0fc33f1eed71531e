"""Reading a network's arguments off the shapes of its state dict: what the ``arguments_from`` have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]
"""Names of a state dict with their shapes; none has zero dimensions or a zero in it."""


def length(shapes: Shapes, prefix: str) -> int:
    """How many modules a sequence has: ``prefix.0.``, ``prefix.1.``, ... without a gap."""
    found = {name[len(prefix) + 1 :].split(".")[0] for name in shapes if name.startswith(prefix + ".")}
    number = 0
    while str(number) in found:
        number += 1
    return number


def ffn_scale(dim: int, hidden: int) -> float:
    """The shortest decimal ``f`` with ``int(dim * f) == hidden``: 72 channels of 36 are 2.0, 61 of 36 are 1.7."""
    for digits in range(1, 17):
        near = round(hidden / dim, digits)
        for candidate in (near, round(near + 10**-digits, digits)):
            if int(dim * candidate) == hidden:
                return candidate
    return hidden / dim


def shuffle_scale(channels: int, image_channels: int = 3) -> int:
    """The scale of a pixel shuffle that makes ``image_channels`` of ``channels``."""
    return math.isqrt(channels // image_channels)
