"""How far a network sees: the halo that a tile must carry so that its core comes out as in the full frame.

The forward pass is walked backwards, from one output pixel to the lowest input pixel that it depends on. Where the
pixel stands in the pooling grid matters, so every place is tried. All grids are mirror-symmetric, so that the largest
distance to the low side, over all places, is that to the high side too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Step(Protocol):
    """A step of the forward pass that moves information about, or changes the grid."""

    def first(self, pixel: int) -> int:
        """The lowest input coordinate that the output at ``pixel`` depends on."""


@dataclass(frozen=True)
class Conv:
    """A convolution of size ``2 * radius + 1``, or bilinear enlargement seen from the grid it starts from."""

    radius: int = 1

    def first(self, pixel: int) -> int:
        """See :class:`Step`."""
        return pixel - self.radius


@dataclass(frozen=True)
class PooledConv:
    """Max pooling by ``factor``, a convolution of ``radius`` cells, and back to the pixel grid.

    The way back is nearest (a pixel reads its own cell) or bilinear without aligned corners (it also reads the cell
    that it stands nearest to). Pooling windows are alike where the image's sides are multiples of ``factor``.
    """

    factor: int
    radius: int = 1
    bilinear: bool = False

    def first(self, pixel: int) -> int:
        """See :class:`Step`."""
        shift = self.factor // 2 if self.bilinear else 0
        return ((pixel - shift) // self.factor - self.radius) * self.factor


@dataclass(frozen=True)
class Unshuffle:
    """Pixel unshuffle: onto a grid that is ``factor`` times coarser."""

    factor: int

    def first(self, pixel: int) -> int:
        """See :class:`Step`."""
        return pixel * self.factor


@dataclass(frozen=True)
class Shuffle:
    """Pixel shuffle: onto a grid that is ``factor`` times finer."""

    factor: int

    def first(self, pixel: int) -> int:
        """See :class:`Step`."""
        return pixel // self.factor


def halo(steps: Iterable[Step], window: int) -> int:
    """The largest distance, in input pixels, at which the input changes an output pixel.

    Args:
        steps: the steps of the longest way through the network, in the order of the forward pass. Input and output
            have the same grid (the pixel shuffle that enlarges the image is left out).
        window: the period of the network's grids, in input pixels.
    """
    backwards = list(steps)[::-1]
    furthest = 0
    for place in range(window):
        pixel = place
        for step in backwards:
            pixel = step.first(pixel)
        furthest = max(furthest, place - pixel)
    return furthest
