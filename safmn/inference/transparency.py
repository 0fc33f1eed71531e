"""Keep the colours of invisible pixels out of the visible result when an image has an alpha channel.

Most files store black or white under fully transparent pixels. A network would blend that colour into the visible edge,
and would cause ringing around it in the alpha channel.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_REACH = 2  # the result has alpha 0 (or full) if the source has it within this many pixels


def filled(colours: Tensor, alpha: Tensor) -> Tensor:
    """Return the colours with each invisible pixel replaced by the nearest visible one.

    Args:
        colours: (B, C, h, w) of any type.
        alpha: (B, 1, h, w), straight (not premultiplied); 0 is invisible.

    Returns:
        A new tensor, or ``colours`` itself if every pixel is visible.
    """
    visible = (alpha != 0).squeeze(1).cpu().numpy()  # (B, h, w)
    if visible.all():
        return colours
    filled = [_filled(image, mask) for image, mask in zip(_bits(colours), visible, strict=True)]
    return torch.stack(filled).view(colours.dtype)


def _filled(colours: Tensor, visible: np.ndarray) -> Tensor:
    """Do the work of :func:`filled` for one image: (C, h, w) and (h, w) bool."""
    if visible.all() or not visible.any():
        return colours
    _, labels = cv2.distanceTransformWithLabels(  # labels: the number of each pixel's nearest visible pixel
        (~visible).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    place = np.zeros(labels.max() + 1, np.int64)
    place[labels[visible]] = np.flatnonzero(visible)
    nearest = torch.from_numpy(place[labels]).to(colours.device)  # (h, w)
    return colours.flatten(1)[:, nearest]


def settle(source: Tensor, target: Tensor, colours: slice, alpha: slice, largest: float) -> None:
    """Correct alpha and invisible colours of an upscaled image in place.

    Where alpha is 0 (or full) all around a source pixel, it is 0 (or full) in the result. Invisible pixels of the
    result get the source's colour, so that large transparent areas stay as simple as they were.

    Args:
        source: (B, C, h, w).
        target: (B, C, h * scale, w * scale), the upscaled image.
        colours, alpha: the channels that hold them.
        largest: the value of full alpha.
    """
    scale = target.shape[-1] // source.shape[-1]
    full = _bits(torch.tensor(largest, dtype=source.dtype)).item()
    opacity = source[:, alpha].to(torch.float32)
    side = 2 * _REACH + 1
    highest = functional.max_pool2d(opacity, side, 1, _REACH)
    lowest = -functional.max_pool2d(-opacity, side, 1, _REACH)
    source, target = _bits(source), _bits(target)
    for index in range(len(source)):  # one image at a time, because the temporaries are as large as its result
        result = target[index, alpha]
        result.masked_fill_(_enlarged(highest[index] == 0, scale), 0)
        result.masked_fill_(_enlarged(lowest[index] == largest, scale), full)
        hidden = _enlarged(source[index, colours], scale)
        target[index, colours] = torch.where(result == 0, hidden, target[index, colours])


def _bits(pixels: Tensor) -> Tensor:
    """Return a view of uint16 as int16, because torch supports few operations for uint16; other types as they are."""
    return pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels


def _enlarged(plane: Tensor, scale: int) -> Tensor:
    """Repeat each pixel: (C, h, w) to (C, h * scale, w * scale)."""
    return plane.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
