"""A SAFMN with weights that make it repeat each pixel, so that the result of upscaling is known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from safmn.archs import SAFMN

Array = np.ndarray[Any, np.dtype[Any]]


def repeater() -> SAFMN:
    """Return a network for x2 with blocks that add nothing and a first and last layer that pass the colours on."""
    network = SAFMN(dim=4, n_blocks=1, upscaling_factor=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for colour in range(3):
            network.to_feat.weight[colour, colour, 1, 1] = 1
            network.to_img[0].weight[4 * colour : 4 * colour + 4, colour, 1, 1] = 0.5  # the skip adds the other half
    return network.eval().requires_grad_(False)


def repeated(pixels: Array, axis: int = 0) -> Array:
    """Return the image with each pixel repeated to 2x2; ``axis`` is that of the height."""
    return pixels.repeat(2, axis=axis).repeat(2, axis=axis + 1)
