"""Images with an alpha channel: what nobody sees must not show after upscaling.

Under fully transparent pixels most files hold black or white. A network would draw that colour into the edge of what is
visible, and ring around it in the alpha channel.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_REACH = 2  # pixels around one in which alpha must be all 0, or all full, for the result to be


def filled(colours: Tensor, alpha: Tensor) -> Tensor:
    """The colours with those of invisible pixels replaced by the nearest visible pixel's.

    Args:
        colours: (B, C, h, w) of any type.
        alpha: (B, 1, h, w), straight; 0 is invisible.

    Returns:
        Another tensor, or ``colours`` where every pixel is visible.
    """
    visible = (alpha != 0).squeeze(1).cpu().numpy()  # (B, h, w)
    if visible.all():
        return colours
    filled = [_filled(image, mask) for image, mask in zip(_bits(colours), visible, strict=True)]
    return torch.stack(filled).view(colours.dtype)


def _filled(colours: Tensor, visible: np.ndarray) -> Tensor:
    """One image: (C, h, w) and (h, w) bool."""
    if visible.all() or not visible.any():
        return colours
    _, labels = cv2.distanceTransformWithLabels(  # each pixel's nearest visible one, as a number
        (~visible).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    place = np.zeros(labels.max() + 1, np.int64)
    place[labels[visible]] = np.flatnonzero(visible)
    nearest = torch.from_numpy(place[labels]).to(colours.device)  # (h, w)
    return colours.flatten(1)[:, nearest]


def settle(source: Tensor, target: Tensor, colours: slice, alpha: slice, largest: float) -> None:
    """Put right, in place, what upscaling cannot know of the result: (B, C, h * s, w * s) of (B, C, h, w).

    Where alpha is 0 (or full) around a pixel, it is so in the result; and what is invisible in the result has the
    colour that the source has there, so that large transparent areas stay as simple as they were.

    Args:
        colours, alpha: which channels.
        largest: full alpha.
    """
    scale = target.shape[-1] // source.shape[-1]
    full = _bits(torch.tensor(largest, dtype=source.dtype)).item()
    opacity = source[:, alpha].to(torch.float32)
    side = 2 * _REACH + 1
    highest = functional.max_pool2d(opacity, side, 1, _REACH)
    lowest = -functional.max_pool2d(-opacity, side, 1, _REACH)
    source, target = _bits(source), _bits(target)
    for index in range(len(source)):  # what follows is as large as the result
        result = target[index, alpha]
        result.masked_fill_(_enlarged(highest[index] == 0, scale), 0)
        result.masked_fill_(_enlarged(lowest[index] == largest, scale), full)
        hidden = _enlarged(source[index, colours], scale)
        target[index, colours] = torch.where(result == 0, hidden, target[index, colours])


def _bits(pixels: Tensor) -> Tensor:
    """The same memory in a type that torch knows every operation for: uint16 has few."""
    return pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels


def _enlarged(plane: Tensor, scale: int) -> Tensor:
    """Each pixel repeated: (C, h, w) to (C, h * scale, w * scale)."""
    return plane.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
