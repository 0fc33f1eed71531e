"""Draw synthetic images: what photographs do not cover, and structure of which photographs have too little.

Each kind of image is a function ``(rng, side) -> image``, uint8 (side, side, 3), that depends only on the draws from
``rng``: no files, no installed fonts. Sizes are in pixels of the drawn image and cover all scales: an area of one
colour may fill the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from safmn.data.drawing.facades import facade
from safmn.data.drawing.leaves import leaves
from safmn.data.drawing.manga import manga
from safmn.data.drawing.pages import page, window
from safmn.data.drawing.plain import edges, flat, gradient, halftone
from safmn.data.drawing.screens import chart, icons, screen, text
from safmn.errors import OptionError, did_you_mean
from safmn.value_types import Array

Kind = Callable[[np.random.Generator, int], Array]

# Name -> the function, and the default weight with which the kind is drawn.
KINDS: Mapping[str, tuple[Kind, float]] = MappingProxyType(
    {
        "flat": (flat, 3.0),
        "edges": (edges, 3.0),
        "gradient": (gradient, 1.0),
        "text": (text, 1.0),
        "icons": (icons, 1.0),
        "screen": (screen, 1.5),
        "chart": (chart, 0.8),
        "halftone": (halftone, 0.5),
        "leaves": (leaves, 3.0),
        "facade": (facade, 3.0),
        "manga": (manga, 2.0),
        "page": (page, 1.5),
        "window": (window, 1.0),
    }
)


def shares_of(kinds: Mapping[str, float] | None) -> tuple[list[str], Array]:
    """Return the names of the kinds and their probabilities.

    Args:
        kinds: relative weights; None: the defaults of :data:`KINDS`.

    Raises:
        OptionError: there is no such kind, a weight is negative or not finite, or all are zero.
    """
    weights = {name: share for name, (_, share) in KINDS.items()} if kinds is None else dict(kinds)
    for name, weight in weights.items():
        if name not in KINDS:
            raise OptionError(f"kinds: there is no kind {name!r}.{did_you_mean(name, KINDS)}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise OptionError(f"kinds: {name}: {weight} is not a weight; give a number of at least 0")
    total = sum(weights.values())
    if not total:
        raise OptionError("kinds: give at least one kind a weight above 0")
    return list(weights), np.array(list(weights.values()), np.float64) / total


def draw(rng: np.random.Generator, side: int, names: list[str], probabilities: Array) -> tuple[str, Array]:
    """Draw a kind, then an image of it; return its name and the image, uint8 (side, side, 3)."""
    name = names[int(rng.choice(len(names), p=probabilities))]
    return name, KINDS[name][0](rng, side)
