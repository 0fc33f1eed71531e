"""Types that several rooms share: image arrays, and the values that an option file may give."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import numpy as np
from msgspec import Meta

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""A numpy array of any element type; the docstring that uses it says its shape and range."""

Positive: TypeAlias = Annotated[int, Meta(ge=1)]
NotNegative: TypeAlias = Annotated[int, Meta(ge=0)]
PositiveFloat: TypeAlias = Annotated[float, Meta(gt=0)]
NotNegativeFloat: TypeAlias = Annotated[float, Meta(ge=0)]
Decay: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]
"""A decay rate of a running mean: 0 keeps nothing of the past."""
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""A seed that NumPy and torch both take."""
Interval: TypeAlias = tuple[float, float]
"""A range [low, high] to draw from."""
