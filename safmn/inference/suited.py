"""Upscale each picture with the weights that suit its state: those for clean images, or those for photographs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safmn.imaging import imresize
from safmn.inference.choices import CLEAN_WEIGHTS, REAL_WEIGHTS
from safmn.inference.condition import examine, quality_of, suitable
from safmn.inference.guard import Finding
from safmn.inference.tiling import Progress
from safmn.inference.upscaler import Upscaler
from safmn.value_types import Array

logger = logging.getLogger("safmn.weights")


def _log(source: Path, choice: str) -> None:
    logger.info("%s: %s.", source, choice)


class Halved:
    """An upscaler whose result is shrunk by two, with MATLAB's bicubic: weights for x4 at x2.

    Args:
        upscaler: of an even scale.
    """

    def __init__(self, upscaler: Upscaler) -> None:
        self._upscaler = upscaler
        self.network: Any = upscaler.network
        self.scale = upscaler.scale // 2

    def __call__(
        self, image: Array, *, progress: Progress | None = None, report: Callable[[Finding], None] | None = None
    ) -> Array:
        """Upscale one image, uint8 or uint16, (H, W) or (H, W, C)."""
        return imresize(self._upscaler(image, progress=progress, report=report), 0.5)

    def expect(self, pixels: int) -> None:
        """Announce that only this number of LR pixels will be upscaled; see :meth:`Upscaler.expect`."""
        self._upscaler.expect(pixels)

    def side_by_side(self, calls: int) -> int:
        """Return the largest number of LR pixels of images that may be computed at once by so many calls."""
        return self._upscaler.side_by_side(calls)


class Suited:
    """Chooses the weights of each picture, and says which and why.

    Args:
        build: returns the upscaler of weights; it is called for those for photographs at the first picture that needs
            them.
        tell: receives the file of each picture, and which weights were chosen for it and why.
    """

    def __init__(self, build: Callable[[str], Upscaler], tell: Callable[[Path, str], None] | None = None) -> None:
        self._build = build
        self._tell = tell or _log
        self.clean = build(CLEAN_WEIGHTS)
        self._real: Halved | None = None

    def for_picture(self, source: Path, pixels: Array) -> Upscaler | Halved:
        """Return the upscaler for a picture.

        Args:
            source: its file, for the message, and for the tables of a JPEG file.
            pixels: (H, W) grey, or (H, W, C). Pictures with transparent parts are taken as clean.
        """
        if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
            real, why = False, "it has transparency"
        else:
            real, why = suitable(examine(pixels, quality_of(source)))
        self._tell(source, f"{f'{REAL_WEIGHTS}, halved' if real else CLEAN_WEIGHTS} ({why})")
        if not real:
            return self.clean
        if self._real is None:
            self._real = Halved(self._build(REAL_WEIGHTS))
        return self._real
