"""The receptive field of a network: the halo that a tile needs so that its core equals the full frame's.

:func:`halo` walks the forward pass backwards, from one output pixel to the lowest input pixel that it depends on. The
result depends on the pixel's position in the pooling grid, so every position is tried. All grids are mirror-symmetric,
so over all positions the largest distance is the same towards both sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Step(Protocol):
    """A step of the forward pass that reads neighbouring pixels or changes the grid."""

    def first(self, pixel: int) -> int:
        """Return the lowest input coordinate that the output at ``pixel`` depends on."""


@dataclass(frozen=True)
class Conv:
    """A convolution of size ``2 * radius + 1``, or a bilinear enlargement, measured on its input grid."""

    radius: int = 1

    def first(self, pixel: int) -> int:
        """Implement :meth:`Step.first`."""
        return pixel - self.radius


@dataclass(frozen=True)
class PooledConv:
    """Max pooling by ``factor``, a convolution with a radius of ``radius`` cells, and enlargement to the pixel grid.

    The enlargement is nearest-neighbour (a pixel reads its own cell) or bilinear without aligned corners (it also reads
    the nearest neighbouring cell). The image's sides are multiples of ``factor``, so all pooling windows have the same
    size.
    """

    factor: int
    radius: int = 1
    bilinear: bool = False

    def first(self, pixel: int) -> int:
        """Implement :meth:`Step.first`."""
        shift = self.factor // 2 if self.bilinear else 0
        return ((pixel - shift) // self.factor - self.radius) * self.factor


@dataclass(frozen=True)
class Unshuffle:
    """Pixel unshuffle to a grid that is ``factor`` times coarser."""

    factor: int

    def first(self, pixel: int) -> int:
        """Implement :meth:`Step.first`."""
        return pixel * self.factor


@dataclass(frozen=True)
class Shuffle:
    """Pixel shuffle to a grid that is ``factor`` times finer."""

    factor: int

    def first(self, pixel: int) -> int:
        """Implement :meth:`Step.first`."""
        return pixel // self.factor


def halo(steps: Iterable[Step], window: int) -> int:
    """Return the largest distance, in input pixels, from which an output pixel depends on the input.

    Args:
        steps: the steps of the path with the largest receptive field, in the order of the forward pass. Input and
            output have the same grid (leave out the pixel shuffle that enlarges the image).
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
