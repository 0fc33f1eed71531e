"""Crop and flip images: the functions take (H, W) and (H, W, C) arrays and return views."""

from __future__ import annotations

from safmn.errors import DataError
from safmn.value_types import Array


def mod_crop(image: Array, scale: int) -> Array:
    """Cut rows from the bottom and columns from the right until height and width are multiples of ``scale``.

    Raises:
        DataError: the scale is below 1, or the image is smaller than the scale.
    """
    height, width = image.shape[:2]
    if scale < 1 or height < scale or width < scale:
        raise DataError(f"mod_crop: cannot crop {width}x{height} (width x height) to a multiple of {scale}")
    return image[: height - height % scale, : width - width % scale]


def crop_border(image: Array, border: int) -> Array:
    """Cut ``border`` pixels from each of the four sides.

    Raises:
        DataError: the border is negative or leaves nothing.
    """
    height, width = image.shape[:2]
    if border < 0 or 2 * border >= min(height, width):
        raise DataError(f"crop_border: cannot crop {border} pixels from each side of {width}x{height} (width x height)")
    return image[border : height - border, border : width - border]


def augment(image: Array, hflip: bool, vflip: bool, rot90: bool) -> Array:
    """Apply a symmetry of the square: flip left-right, then top-bottom, then swap the axes (BasicSR's order).

    Returns:
        A view, of shape (W, H, ...) if ``rot90`` is set.
    """
    if hflip:
        image = image[:, ::-1]
    if vflip:
        image = image[::-1]
    return image.swapaxes(0, 1) if rot90 else image
