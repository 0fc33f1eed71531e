"""Types that several packages share: image arrays, and the values allowed in option files."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import numpy as np
from msgspec import Meta

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""A numpy array of any element type. The docstring that uses it states shape and range."""

Positive: TypeAlias = Annotated[int, Meta(ge=1)]
NotNegative: TypeAlias = Annotated[int, Meta(ge=0)]
PositiveFloat: TypeAlias = Annotated[float, Meta(gt=0)]
NotNegativeFloat: TypeAlias = Annotated[float, Meta(ge=0)]
Decay: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]
"""The decay rate of a running mean; 0 forgets the past at once."""
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""A seed that both NumPy and torch accept."""
Interval: TypeAlias = tuple[float, float]
"""A range [low, high] from which a value is drawn."""
