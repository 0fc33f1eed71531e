"""Paired differences of per-image scores, with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Difference(NamedTuple):
    """The mean difference of two methods over the same images.

    Attributes:
        mean: mean of B - A.
        half: half the width of the interval; NaN for a single image.
        images: number of images.
    """

    mean: float
    half: float
    images: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.mean) > self.half


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> Difference | None:
    """Return the mean of ``b`` - ``a`` over the images that both have, with Student's t interval for that mean.

    The interval is for other images of the same kind. It takes the differences as normally distributed.

    Args:
        a: image -> score.
        b: image -> score.

    Returns:
        The difference, or None if no image has two finite scores.
    """
    differences = np.array(
        [b[image] - a[image] for image in a if image in b and math.isfinite(a[image]) and math.isfinite(b[image])]
    )
    count = len(differences)
    if not count:
        return None
    half = math.nan
    if count > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * differences.std(ddof=1) / math.sqrt(count))
    return Difference(float(differences.mean()), half, count)
