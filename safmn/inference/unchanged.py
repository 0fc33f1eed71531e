"""Upscale frames in order. What did not change since the last frame is not computed again, where that is exact.

Titles, slides, screen recordings and drawings have frames that equal the last one, or differ in a small area. An area's
result depends on the input up to the network's halo around it. So a change is computed with twice the halo around it,
and all that is farther from it than the halo is taken from the last result, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from safmn.errors import WeightsError
from safmn.inference.guard import BLOCK, Finding
from safmn.inference.tiling import Progress
from safmn.value_types import Array

_MOST = 0.7  # of a frame: if more would have to be computed, the whole frame is


class Exact(Protocol):
    """What :class:`Frames` asks of an upscaler; see :class:`safmn.Upscaler`."""

    scale: int

    def __call__(
        self, image: Array, *, progress: Progress | None = None, report: Callable[[Finding], None] | None = None
    ) -> Array:
        """Upscale an image."""

    def exact_reach(self, height: int, width: int) -> tuple[int, int] | None:
        """Return how far a change reaches, and the grid of areas; None if areas are not exactly like the whole."""


class Area(NamedTuple):
    """A rectangle of a frame in LR pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def pixels(self) -> int:
        """Number of its pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def of(self, image: Array, scale: int = 1) -> Array:
        """Return this part of an image that is ``scale`` times as large as the frame."""
        return image[self.top * scale : self.bottom * scale, self.left * scale : self.right * scale]

    def without(self, border: int, height: int, width: int) -> Area:
        """Return the area without a border along those of its edges that are not edges of the frame."""
        return Area(
            self.top + (border if self.top > 0 else 0),
            self.bottom - (border if self.bottom < height else 0),
            self.left + (border if self.left > 0 else 0),
            self.right - (border if self.right < width else 0),
        )


class _Last(NamedTuple):
    """A frame, its result and what the guard found in it."""

    frame: Array
    result: Array
    found: list[Finding]


class Frames:
    """Upscales the frames of one film or animation, in order.

    The results are those of the upscaler. Do not change the arrays that are passed in or returned: later calls use
    them.

    Args:
        upscaler: the network.
        report: receives the guard's finding in each frame that has one.

    Attributes:
        pixels: LR pixels of all frames so far.
        computed: LR pixels that the network computed for them.
    """

    def __init__(self, upscaler: Exact, report: Callable[[Finding], None]) -> None:
        self._upscaler = upscaler
        self._report = report
        self._last: _Last | None = None
        self.pixels = self.computed = 0

    @property
    def unchanged(self) -> float:
        """The part of all frames (0 to 1) that was not computed."""
        return max(1 - self.computed / self.pixels, 0.0) if self.pixels else 0.0

    def __call__(self, frame: Array, *, progress: Progress | None = None) -> Array:
        """Upscale the next frame: uint8 or uint16 (H, W, C); see :class:`safmn.Upscaler` for ``progress``."""
        self.pixels += frame.shape[0] * frame.shape[1]
        new = self._from_last(frame)
        if new is None:
            found: list[Finding] = []
            new = _Last(frame, self._compute(frame, found, progress), found)
        elif progress is not None:
            progress(1.0)
        for finding in new.found:
            self._report(finding)
        self._last = new
        return new.result

    def _compute(self, image: Array, found: list[Finding], progress: Progress | None = None) -> Array:
        self.computed += image.shape[0] * image.shape[1]
        return self._upscaler(image, progress=progress, report=found.append)

    def _from_last(self, frame: Array) -> _Last | None:
        """Return the frame's result made of the last one; None if the whole frame must be computed."""
        last = self._last
        if last is None or last.frame.shape != frame.shape or last.frame.dtype != frame.dtype:
            return None
        height, width, channels = frame.shape
        reach, grid = self._upscaler.exact_reach(height, width) or (0, BLOCK)
        changed = changed_blocks(last.frame, frame, grid)
        if not changed.any():
            return _Last(frame, last.result, last.found)
        # What the guard finds may depend on the whole frame, and so may the colours of transparent pixels.
        if not reach or last.found or channels != 3:
            return None
        areas = areas_to_compute(changed, reach, grid, (height, width))
        if sum(area.pixels for area in areas) > _MOST * height * width:
            return None
        found: list[Finding] = []
        result = last.result.copy()
        for area in areas:
            try:
                part = self._compute(np.ascontiguousarray(area.of(frame)), found)
            except WeightsError:  # all of this area is garbage; the whole frame may not be
                return None
            if found:
                return None
            inside = area.without(reach, height, width)
            within = Area(
                *(side - start for side, start in zip(inside, (area.top,) * 2 + (area.left,) * 2, strict=True))
            )
            scale = self._upscaler.scale
            inside.of(result, scale)[...] = within.of(part, scale)
        return _Last(frame, result, found)


def changed_blocks(before: Array, after: Array, side: int) -> Array:
    """Return which blocks of ``side`` x ``side`` pixels of two images (H, W, C) differ: (rows, columns) bool."""
    height, width, channels = before.shape
    differ = (before != after).reshape(height, width * channels)
    rows = np.logical_or.reduceat(differ, range(0, height, side), axis=0)
    blocks: Array = np.logical_or.reduceat(rows, range(0, width * channels, side * channels), axis=1)
    return blocks


def areas_to_compute(changed: Array, reach: int, grid: int, size: tuple[int, int]) -> list[Area]:
    """Return the areas to compute: all that is changed, with twice the reach around it.

    Args:
        changed: which blocks changed; see :func:`changed_blocks`.
        reach: how far a change reaches, in pixels, a multiple of ``grid``.
        grid: side of the blocks in pixels.
        size: height and width of the frame in pixels.
    """
    around = 2 * (2 * reach // grid) + 1
    wide = cv2.dilate(changed.astype(np.uint8), np.ones((around, around), np.uint8))
    count, _, boxes, _ = cv2.connectedComponentsWithStats(wide, connectivity=8)
    areas = []
    for left, top, width, height, _ in boxes[1:count].tolist():
        bottom, right = min((top + height) * grid, size[0]), min((left + width) * grid, size[1])
        areas.append(Area(top * grid, bottom, left * grid, right))
    return areas


def grid_of(window: int) -> int:
    """Return the side of blocks that are whole windows of a network and whole blocks of the guard."""
    return math.lcm(window, BLOCK)
