"""Made-up photographs: inputs on which networks behave as on photographs, identical on every machine.

On drawings, flat colours and white noise, trained networks may overshoot without bounds. Therefore a network's back end
and the bounds of its guard are chosen on these photographs and not on the user's image.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import torch
from torch import Tensor

_BLOCK = 8  # pixels along each side of a JPEG block
_NOISE = 0.06  # standard deviation


@functools.lru_cache(maxsize=8)
def made_up_photographs(height: int, width: int) -> Tensor:
    """Return structure of all sizes in muted colours four times: clean, noisy, with JPEG's blocks, and with both.

    The last three contain what restoring networks remove.

    Returns:
        (4, 3, height, width) float32 in [0, 1]. The tensor is cached: do not change it.
    """
    rng = np.random.default_rng(20)
    clean = _scene(rng, height, width)
    noise = rng.normal(0, _NOISE, clean.shape)
    blocky = 0.5 * clean + 0.5 * _in_blocks(clean)
    images = np.stack([clean, clean + noise, blocky, blocky + noise]).clip(0, 1)  # (4, H, W, 3)
    return torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def _scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a sum of random grids of decreasing cell size and strength: (H, W, 3) in [0.04, 0.96]."""
    image = np.full((height, width, 3), 0.5)
    cells = 2
    while cells <= max(height, width):
        grid = rng.normal(0, 1, (cells, cells, 1)) + 0.35 * rng.normal(0, 1, (cells, cells, 3))
        image += 0.16 * (2 / cells) ** 0.75 * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cells *= 2
    return image.clip(0.04, 0.96)


def _in_blocks(image: np.ndarray) -> np.ndarray:
    """Return the image with each block of 8x8 pixels in its mean colour: (H, W, 3)."""
    height, width = image.shape[:2]
    cells = (-(-width // _BLOCK), -(-height // _BLOCK))
    small = cv2.resize(image, cells, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST))
