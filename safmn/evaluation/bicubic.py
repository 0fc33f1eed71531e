"""Bicubic upscaling in the form of a network, as the baseline in tables."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from safmn.imaging import imresize, to_tensor, to_uint8


def bicubic(scale: int) -> Callable[[Tensor], Tensor]:
    """Return a function that upscales as MATLAB's bicubic does, with input and output rounded to 8 bits.

    The function maps (1, 3, h, w) to (1, 3, scale * h, scale * w), RGB in [0, 1].
    """

    def enlarge(lq: Tensor) -> Tensor:
        return to_tensor(imresize(to_uint8(lq[0]), scale))[None]

    return enlarge
