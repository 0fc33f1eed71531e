"""Bicubic enlargement as a network: the baseline of every table."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from safmn.imaging import imresize, to_tensor, to_uint8


def bicubic(scale: int) -> Callable[[Tensor], Tensor]:
    """MATLAB's bicubic enlargement: (1, 3, h, w) to (1, 3, scale * h, scale * w), RGB in [0, 1], 8-bit steps."""

    def enlarge(lq: Tensor) -> Tensor:
        return to_tensor(imresize(to_uint8(lq[0]), scale))[None]

    return enlarge
