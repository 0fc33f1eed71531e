"""Upscale each picture with the weights that suit its state: those for clean images, or those for photographs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from safmn.inference.choices import CLEAN_WEIGHTS, REAL_WEIGHTS
from safmn.inference.condition import examine, quality_of, suitable
from safmn.inference.upscaler import Upscaler
from safmn.value_types import Array

logger = logging.getLogger("safmn.weights")


def _log(source: Path, choice: str) -> None:
    logger.info("%s: %s.", source, choice)


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
        self._real: Upscaler | None = None

    def for_frames(self, source: Path, kind: str) -> Upscaler:
        """Return the upscaler for a film or an animation, which is not examined; ``kind`` is which of the two."""
        self._tell(source, f"{CLEAN_WEIGHTS} ({kind}, which is not examined)")
        return self.clean

    def for_picture(self, source: Path, pixels: Array) -> Upscaler:
        """Return the upscaler for a picture.

        Args:
            source: its file, for the message, and for the tables of a JPEG file.
            pixels: (H, W) grey, or (H, W, C). Pictures with transparent parts are taken as clean.
        """
        if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
            real, why = False, "it has transparency"
        else:
            real, why = suitable(examine(pixels, quality_of(source)))
        self._tell(source, f"{REAL_WEIGHTS if real else CLEAN_WEIGHTS} ({why})")
        if not real:
            return self.clean
        if self._real is None:
            self._real = self._build(REAL_WEIGHTS)
        return self._real
