"""Textures for drawings: fields of values in [-1, 1], and colours as photographs have them."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from safmn.data.drawing.shapes import size

Field = NDArray[np.float32]


def natural_colours(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Draw ``count`` colours around a few of low saturation, as in one photograph: float32 (count, 3) in [0, 255]."""
    anchors = int(rng.integers(1, 5))
    grey = rng.uniform(15, 240, (anchors, 1))
    tint = rng.normal(0, 1, (anchors, 3))
    tint -= tint.mean(axis=1, keepdims=True)
    base = grey + tint * rng.uniform(5, 55, (anchors, 1))
    spread = rng.uniform(5, 45)
    chosen = base[rng.integers(anchors, size=count)]
    light = rng.normal(0, spread, (count, 1))
    return np.clip(chosen + light + rng.normal(0, spread / 4, (count, 3)), 0, 255).astype(np.float32)


def cloud(rng: np.random.Generator, side: int, fall: float) -> Field:
    """Draw noise whose amplitude falls with the ``fall``-th power of the frequency: (side, side), scaled to [-1, 1].

    The noise is drawn at half the size, since :func:`shrunk` halves the image again.
    """
    cells = cv2.getOptimalDFTSize(max((side + 1) // 2, 8))
    across, down = np.fft.rfftfreq(cells) * cells, np.fft.fftfreq(cells)[:, None] * cells
    amplitude = np.maximum(np.hypot(down, across), 1) ** -fall
    phases = rng.uniform(0, 2 * math.pi, amplitude.shape)
    values = np.fft.irfft2(amplitude * (np.cos(phases) + 1j * np.sin(phases)), s=(cells, cells))
    values = (values / max(3 * float(values.std()), 1e-9)).clip(-1, 1).astype(np.float32)
    return np.ascontiguousarray(cv2.resize(values, (2 * cells, 2 * cells))[:side, :side])


def waves(rng: np.random.Generator, side: int, bend: Field) -> Field:
    """Draw a grating of any angle and period, bent by the field ``bend``: sine, stripes or a chequered pattern."""
    steps = np.arange(side, dtype=np.float32)
    angle, period = rng.uniform(0, math.pi), size(rng, 4, side / 3)
    form, strength = rng.integers(3), float(rng.uniform(0, 1.5)) * period
    turn = 2 * math.pi / period
    along = steps[None] * math.cos(angle) + steps[:, None] * math.sin(angle) + strength * bend
    values = np.sin(along * turn, dtype=np.float32)
    if form == 2:
        across = steps[:, None] * math.cos(angle) - steps[None] * math.sin(angle) + strength * bend
        values = values * np.sin(across * turn, dtype=np.float32)
    return values if form == 0 else np.clip(values * period / 4, -1, 1).astype(np.float32)


def shrunk(image: NDArray[np.float32], side: int) -> NDArray[np.uint8]:
    """Return an image (2 * side, 2 * side, 3) at half its size, uint8: edges become anti-aliased."""
    half = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    result: NDArray[np.uint8] = np.rint(half.clip(0, 255)).astype(np.uint8)
    return result
