"""How far a network sees: the halo that a tile must carry so that its core comes out as in the full frame.

A network is walked backwards, from one output pixel to the input pixels it depends on, through a list of reaches. The
pixel's place within the pooling grid matters, so every place is tried and the largest distance is the halo.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Conv:
    """A convolution of odd size ``2 * radius + 1`` on the pixel grid."""

    radius: int = 1

    def first(self, pixel: int) -> int:
        """The lowest input coordinate that the output at ``pixel`` depends on."""
        return pixel - self.radius


@dataclass(frozen=True)
class PooledConv:
    """Max pooling by ``factor``, a convolution of ``radius`` cells, and back to the pixel grid.

    The way back is nearest (a pixel reads its own cell) or bilinear (it also reads the cell beside it, when it lies in
    the nearer half of its own; half-pixel centres, ``align_corners=False``).
    """

    factor: int
    radius: int = 1
    bilinear: bool = False

    def first(self, pixel: int) -> int:
        """The lowest input coordinate that the output at ``pixel`` depends on."""
        shift = self.factor // 2 if self.bilinear else 0
        return ((pixel - shift) // self.factor - self.radius) * self.factor


def halo(reaches: Iterable[Conv | PooledConv], window: int) -> int:
    """The largest distance at which an input pixel changes an output pixel.

    Args:
        reaches: the steps with a spatial extent on the longest path, in the order of the forward pass.
        window: the coarsest pooling factor: places repeat with this period.

    Returns:
        The halo in pixels of the grid that ``reaches`` works on. Everything here is symmetric or reaches further to
        the low side (pixel 0 of a cell and the far end of the cell before it), so the low side is walked.
    """
    backwards = list(reaches)[::-1]
    furthest = 0
    for place in range(window):
        pixel = place
        for reach in backwards:
            pixel = reach.first(pixel)
        furthest = max(furthest, place - pixel)
    return furthest
