"""Floating-point samples: which value is white, by the values that there are."""

from __future__ import annotations

import numpy as np

from safmn.errors import DataError
from safmn.value_types import Array

_OVERSHOOT = 0.1  # by how much values of 0 to 1 may leave that range, as those of filters and resizing do
_WHITES = ((255, 64), (65535, 16384))  # (value of white, the largest value must be above)


def to_deep(samples: Array) -> tuple[Array, str | None]:
    """Floating-point samples as uint16, and what was taken for granted, in words (None: nothing).

    White is 1 where the values are 0 to 1 (a little beyond is cut off); else 255 or 65535, where the largest value
    makes one of them plain.

    Raises:
        DataError: values that are not finite, or whose white is not plain.
    """
    values = samples.astype(np.float64)
    broken = int((~np.isfinite(values)).any(axis=-1).sum())
    if broken:
        raise DataError(f"{broken} pixels are not numbers (NaN or infinite); repair them, or convert the image")
    lowest, highest = float(values.min()), float(values.max())
    said = f"values of {lowest:.6g} to {highest:.6g}"
    if lowest >= -_OVERSHOOT and highest <= 1 + _OVERSHOOT:
        outside = int(((values < 0) | (values > 1)).any(axis=-1).sum())
        note = f"floating-point {said}: {outside} pixels beyond 0 to 1 are cut off" if outside else None
        return _scaled(values, 1), note
    for white, above in _WHITES:
        if above < highest <= white * 1.02 and lowest >= -0.02 * white:
            return _scaled(values, white), f"floating-point {said}: {white} is taken for white"
    raise DataError(f"floating-point {said}: it is not plain which of them is white; scale them to 0 to 1")


def _scaled(values: Array, white: float) -> Array:
    return np.rint(np.clip(values / white, 0, 1) * 65535).astype(np.uint16)
