"""Convert floating-point samples to 16 bits, and find from their range which value is white."""

from __future__ import annotations

import numpy as np

from safmn.errors import DataError
from safmn.value_types import Array

_OVERSHOOT = 0.1  # values of the range 0 to 1 may leave it by this much, as after filters and resizing
_WHITES = ((255, 64), (65535, 16384))  # (value of white, lower bound of the largest sample)


def to_deep(samples: Array) -> tuple[Array, str | None]:
    """Return floating-point samples (..., C) as uint16, and a note on what was assumed or cut off, or None.

    White is 1 if the values lie in 0 to 1 (slightly larger ranges are clipped). Otherwise it is 255 or 65535 if the
    largest value clearly indicates one of them.

    Raises:
        DataError: values are not finite, or white is ambiguous.
    """
    values = samples.astype(np.float64)
    broken = int((~np.isfinite(values)).any(axis=-1).sum())
    if broken:
        raise DataError(f"{broken} pixels are NaN or infinite; repair them, or convert the image")
    lowest, highest = float(values.min()), float(values.max())
    said = f"values of {lowest:.6g} to {highest:.6g}"
    if lowest >= -_OVERSHOOT and highest <= 1 + _OVERSHOOT:
        outside = int(((values < 0) | (values > 1)).any(axis=-1).sum())
        note = f"floating-point {said}: {outside} pixels outside 0 to 1 are clipped" if outside else None
        return _scaled(values, 1), note
    for white, above in _WHITES:
        if above < highest <= white * 1.02 and lowest >= -0.02 * white:
            return _scaled(values, white), f"floating-point {said}: {white} is taken as white"
    raise DataError(f"floating-point {said}: it is unclear which value is white; scale them to 0 to 1")


def _scaled(values: Array, white: float) -> Array:
    return np.rint(np.clip(values / white, 0, 1) * 65535).astype(np.uint16)
