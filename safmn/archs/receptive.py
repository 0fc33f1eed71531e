"""The receptive field of a network: the halo that a tile needs so that its core equals the full frame's.

:func:`halo` walks the forward pass backwards, from one output pixel to the lowest input pixel that it depends on. The
result depends on the pixel's position in the grids of pooling and enlargement, so every position is tried. All grids
are mirror-symmetric, so over all positions the largest distance is the same towards both sides. (A transposed
convolution may not be; its step then takes the larger distance for both sides.)
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


@dataclass(frozen=True)
class TransposedConv:
    """A transposed convolution: its output is ``stride`` times as large as its input."""

    size: int
    stride: int
    padding: int

    def first(self, pixel: int) -> int:
        """Implement :meth:`Step.first`."""
        first = -((self.size - 1 - self.padding - pixel) // self.stride)
        if self.size - 2 * self.padding == self.stride:  # mirror-symmetric
            return first
        behind = max((place + self.padding) // self.stride for place in range(self.stride))
        return min(first, pixel // self.stride - behind)


def halo(steps: Iterable[Step], window: int, scale: int = 1) -> int:
    """Return the largest distance, in input pixels, from which an output pixel depends on the input.

    Args:
        steps: the steps of the path with the largest receptive field, in the order of the forward pass.
        window: the period of the network's grids, in input pixels.
        scale: how many times finer the grid behind the last step is than the input's. A pixel shuffle (or another
            enlargement) at the end may be left out, together with the scale.
    """
    backwards = list(steps)[::-1]
    furthest = 0
    for place in range(window * scale):
        pixel = place
        for step in backwards:
            pixel = step.first(pixel)
        furthest = max(furthest, place // scale - pixel)
    return furthest
