"""Apply a recipe to an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from safmn.degradations import operations
from safmn.degradations.extra_steps import apply_extra
from safmn.degradations.recipe import (
    Blur,
    Compress,
    Crop,
    Extra,
    GaussianNoise,
    Geometry,
    PoissonNoise,
    Recipe,
    Resize,
    SensorNoise,
    Step,
)
from safmn.errors import DataError
from safmn.imaging import augment
from safmn.value_types import Array

_USM_REACH = operations.USM_RADIUS // 2 * 2  # sharpening blurs twice; pixels farther away have no influence


class DegradedPair(NamedTuple):
    """A training pair: float32 (H, W, 3) RGB in [0, 1]. ``gt_usm`` is the sharpened GT if it was requested."""

    lq: Array
    gt: Array
    gt_usm: Array | None


def apply_recipe(recipe: Recipe, image: Array) -> Array:
    """Degrade an image: sharpen it if the recipe says so, run the steps, clamp and round to 8 bits.

    The recipe's geometry is not applied; use :func:`make_pair` for that.

    Args:
        image: float32 RGB in [0, 1], (H, W, 3); sides at least ``recipe.scale``.

    Returns:
        The LQ image, ``(H // scale, W // scale, 3)``: multiples of 1/255 in [0, 1].

    Raises:
        DataError: the image has the wrong shape or is too small.
    """
    _check_image(recipe, image)
    return _degrade(recipe, operations.sharpen(image) if recipe.sharpen else image)


def stages(recipe: Recipe, image: Array) -> Iterator[tuple[Step, Array]]:
    """Yield each step of a recipe and the image after it, without the final rounding.

    The arguments are those of :func:`apply_recipe`.
    """
    _check_image(recipe, image)
    return _stages(recipe, operations.sharpen(image) if recipe.sharpen else image)


def make_pair(recipe: Recipe, image: Array, *, sharpened: bool) -> DegradedPair:
    """Return the training pair that a recipe makes from an image, on the CPU.

    The whole crop is degraded, not only the patch. Kernels, JPEG blocks and resizes therefore treat the patch like the
    interior of an image. Sharpening also uses the patch's surroundings, as far as the crop contains them.

    Args:
        image: uint8 RGB (H, W, 3), of any size.
        sharpened: whether to return the sharpened GT as well.
    """
    crop = operations.from_uint8(cut_crop(recipe.geometry, image))
    source = operations.sharpen(crop) if recipe.sharpen else crop
    lq = _degrade(recipe, source)
    scale, side = recipe.scale, recipe.geometry.patch.size
    top, left = _place(recipe.geometry.patch, side // scale, *lq.shape[:2])
    gt_top, gt_left = top * scale, left * scale
    gt_usm = None
    if sharpened and recipe.sharpen:
        gt_usm = source[gt_top : gt_top + side, gt_left : gt_left + side]
    elif sharpened:
        gt_usm = _sharpen_patch(crop, gt_top, gt_left, side)
    gt = crop[gt_top : gt_top + side, gt_left : gt_left + side]
    return DegradedPair(lq[top : top + side // scale, left : left + side // scale], gt, gt_usm)


def cut_crop(geometry: Geometry, image: Array) -> Array:
    """Flip, mirror-pad at the bottom and right if needed, and crop: (H, W, 3) -> (size, size, 3), contiguous."""
    turned = augment(image, geometry.hflip, geometry.vflip, geometry.rot90)
    side = geometry.crop.size
    height, width = turned.shape[:2]
    if min(height, width) < side:
        bottom, right = max(side - height, 0), max(side - width, 0)
        turned = cv2.copyMakeBorder(np.ascontiguousarray(turned), 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    top, left = _place(geometry.crop, side, *turned.shape[:2])
    return np.ascontiguousarray(turned[top : top + side, left : left + side])


def _place(crop: Crop, side: int, height: int, width: int) -> tuple[int, int]:
    """Return top and left of a square of ``side`` pixels; all positions are equally likely."""
    return int(crop.down * (height - side + 1)), int(crop.across * (width - side + 1))


def _sharpen_patch(crop: Array, top: int, left: int, side: int) -> Array:
    """Return the patch of the sharpened crop; sharpen only the pixels that influence it."""
    first_row, first_column = max(top - _USM_REACH, 0), max(left - _USM_REACH, 0)
    around = crop[first_row : top + side + _USM_REACH, first_column : left + side + _USM_REACH]
    sharp = operations.sharpen(around)
    down, across = top - first_row, left - first_column
    return sharp[down : down + side, across : across + side]


def _check_image(recipe: Recipe, image: Array) -> None:
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"a recipe needs an (H, W, 3) array, not one of shape {tuple(image.shape)}")
    height, width = image.shape[:2]
    if min(height, width) < recipe.scale:
        raise DataError(f"an image of {width}x{height} is too small for scale {recipe.scale}")


def _degrade(recipe: Recipe, image: Array) -> Array:
    """Run the steps, then clamp and round to 8 bits."""
    result = image
    for _, after in _stages(recipe, image):
        result = after
    return operations.finish(result)


def _stages(recipe: Recipe, image: Array) -> Iterator[tuple[Step, Array]]:
    height, width = image.shape[:2]
    for step in recipe.steps:
        image = _apply(step, image, (height / recipe.scale, width / recipe.scale))
        yield step, image


def _apply(step: Step, image: Array, lq_size: tuple[float, float]) -> Array:
    match step:
        case Blur():
            return operations.blur(image, step.kernel)
        case Resize():
            return _resize(step, image, lq_size)
        case GaussianNoise():
            return operations.gaussian_noise(image, step)
        case PoissonNoise():
            return operations.poisson_noise(image, step)
        case SensorNoise():
            return operations.sensor_noise(image, step)
        case Compress():
            return operations.compress(image, step)
        case Extra():
            return apply_extra(step, image)


def _resize(step: Resize, image: Array, lq_size: tuple[float, float]) -> Array:
    base = lq_size if step.of == "lq" else operations.size_of(image)
    size = (max(int(base[0] * step.factor), 1), max(int(base[1] * step.factor), 1))
    if size == operations.size_of(image) and (step.of == "lq" or step.factor == 1):
        return image
    # Resize by the factor if there is one, as the published code does. If that leaves no pixels, torch needs a size.
    factor = step.factor if step.of == "input" and min(base[0] * step.factor, base[1] * step.factor) >= 1 else None
    return operations.resize(image, step.mode, size, factor)
