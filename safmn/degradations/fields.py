"""Random fields for noise steps, made on the CPU from the step's seed so that every device adds the same noise."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import pdtr

from safmn.value_types import Array

POISSON_BITS = 14
_LEVELS = 256


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def normal(seed: int, height: int, width: int, *, grey: bool) -> Array:
    """Return standard normal numbers: float32 (H, W, 3), or (H, W, 1) if ``grey``."""
    return _generator(seed).standard_normal((height, width, 1 if grey else 3), dtype=np.float32)


def uniform_bins(seed: int, height: int, width: int, *, grey: bool) -> Array:
    """Return uniform bin numbers, 2**14 equal bins over [0, 1): uint16 (H, W, 3), or (H, W, 1) if ``grey``."""
    shape = (height, width, 1 if grey else 3)
    words = _generator(seed).bytes(2 * math.prod(shape))
    return np.right_shift(np.frombuffer(words, np.dtype("<u2")), 16 - POISSON_BITS).reshape(shape)


def poisson_levels(distinct: int) -> int:
    """Return the number of levels for Poisson noise, a power of two, from the number of distinct levels in an image."""
    return 1 << max(distinct - 1, 0).bit_length()


@lru_cache(maxsize=16)
def poisson_quantiles(levels: int) -> Array:
    """Return a table of Poisson counts: entry (g << 14) + b is the number of events for grey level g, uniform bin b.

    The expected number is ``g / 255 * levels``. Drawing from a table by inversion is 20 times as fast as NumPy's
    rejection sampler. If rounding changes a grey level between devices, only one count changes, not all later ones.
    At 256 levels the variance matches the Poisson distribution within 0.06 % (1.2 % at 1 and 2); no draw lies beyond
    4 standard deviations.

    Returns:
        uint16, (256 * 2**14,).
    """
    middles = (np.arange(1 << POISSON_BITS) + 0.5) / (1 << POISSON_BITS)
    table = np.zeros((_LEVELS, 1 << POISSON_BITS), np.uint16)  # grey level 0: no events
    for grey in range(1, _LEVELS):
        expected = grey / 255 * levels
        counts = np.arange(int(expected + 8 * math.sqrt(expected)) + 10)
        table[grey] = np.searchsorted(pdtr(counts, expected), middles)
    return table.reshape(-1)
