"""Applying a recipe: the same few lines for arrays on the CPU and for tensors on any device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, cast

import cv2
import numpy as np
from torch import Tensor

from safmn.degradations import ops_array, ops_tensor
from safmn.degradations.recipe import (
    Blur,
    Compress,
    Crop,
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

ImageT = TypeVar("ImageT", Array, Tensor)

_USM_REACH = ops_array.USM_RADIUS // 2 * 2  # two blurs: how far a pixel's sharpening looks


class Pair(NamedTuple):
    """A training pair: float32 (H, W, 3) RGB in [0, 1]; ``gt_usm`` is the sharpened GT, where it was asked for."""

    lq: Array
    gt: Array
    gt_usm: Array | None


def apply_recipe(recipe: Recipe, image: ImageT) -> ImageT:
    """Degrade an image: sharpen it if the recipe says so, do the steps, clamp and round to 8 bits.

    The recipe's geometry is not applied (:func:`make_pair` does). An array is degraded on the CPU, with libjpeg; a
    tensor on its device, with the DCT of :mod:`safmn.degradations.jpeg`. Noise is made on the CPU in both cases.

    The two agree: half of the LQ images to the bit, four of five within 0.1 grey levels on average, all within 1 on
    average. What differs are blocks where a rounding error of 1e-6 decides how a coefficient is quantised; there single
    pixels differ by up to 40.

    Args:
        image: float32 RGB in [0, 1]: an array (H, W, 3), or a tensor (3, H, W); sides at least ``recipe.scale``.

    Returns:
        The LQ image in the same form, ``H // scale`` by ``W // scale``: multiples of 1/255 in [0, 1].

    Raises:
        DataError: the image has another form, or is too small.
    """
    _check_image(recipe, image)
    ops: Any = ops_tensor if isinstance(image, Tensor) else ops_array
    source = ops.sharpen(image) if recipe.sharpen else image
    return cast(ImageT, _degrade(recipe, source, ops))


def stages(recipe: Recipe, image: ImageT) -> Iterator[tuple[Step, ImageT]]:
    """The image after each step of a recipe, before the final rounding; arguments as of :func:`apply_recipe`."""
    _check_image(recipe, image)
    ops: Any = ops_tensor if isinstance(image, Tensor) else ops_array
    return _stages(recipe, ops.sharpen(image) if recipe.sharpen else image, ops)


def make_pair(recipe: Recipe, image: Array, *, sharpened: bool) -> Pair:
    """The training pair that a recipe makes of an image, on the CPU.

    The crop, not only the patch, is degraded: kernels, JPEG blocks and resizes then meet the patch as they meet the
    inside of an image. Sharpening likewise knows the patch's surroundings, where they lie in the crop.

    Args:
        image: uint8 RGB (H, W, 3), of any size.
        sharpened: whether to return the sharpened GT too.
    """
    crop = ops_array.from_uint8(cut_crop(recipe.geometry, image))
    source = ops_array.sharpen(crop) if recipe.sharpen else crop
    lq = _degrade(recipe, source, ops_array)
    scale, side = recipe.scale, recipe.geometry.patch.size
    top, left = _place(recipe.geometry.patch, side // scale, *lq.shape[:2])
    gt_top, gt_left = top * scale, left * scale
    gt_usm = None
    if sharpened and recipe.sharpen:
        gt_usm = source[gt_top : gt_top + side, gt_left : gt_left + side]
    elif sharpened:
        gt_usm = _sharpen_patch(crop, gt_top, gt_left, side)
    gt = crop[gt_top : gt_top + side, gt_left : gt_left + side]
    return Pair(lq[top : top + side // scale, left : left + side // scale], gt, gt_usm)


def cut_crop(geometry: Geometry, image: Array) -> Array:
    """Flip, pad by mirroring at the bottom and on the right, cut: (H, W, 3) -> (size, size, 3), contiguous."""
    turned = augment(image, geometry.hflip, geometry.vflip, geometry.rot90)
    side = geometry.crop.size
    height, width = turned.shape[:2]
    if min(height, width) < side:
        bottom, right = max(side - height, 0), max(side - width, 0)
        turned = cv2.copyMakeBorder(np.ascontiguousarray(turned), 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    top, left = _place(geometry.crop, side, *turned.shape[:2])
    return np.ascontiguousarray(turned[top : top + side, left : left + side])


def _place(crop: Crop, side: int, height: int, width: int) -> tuple[int, int]:
    """Top and left of a square of ``side`` pixels; every position is as likely."""
    return int(crop.down * (height - side + 1)), int(crop.across * (width - side + 1))


def _sharpen_patch(crop: Array, top: int, left: int, side: int) -> Array:
    """The patch of the sharpened crop, without sharpening what is too far away to matter."""
    first_row, first_column = max(top - _USM_REACH, 0), max(left - _USM_REACH, 0)
    around = crop[first_row : top + side + _USM_REACH, first_column : left + side + _USM_REACH]
    sharp = ops_array.sharpen(around)
    down, across = top - first_row, left - first_column
    return sharp[down : down + side, across : across + side]


def _check_image(recipe: Recipe, image: Array | Tensor) -> None:
    if image.ndim != 3 or image.shape[0 if isinstance(image, Tensor) else 2] != 3:
        wanted = "(3, H, W) tensor" if isinstance(image, Tensor) else "(H, W, 3) array"
        raise DataError(f"a recipe is applied to a {wanted}, not to one of shape {tuple(image.shape)}")
    height, width = image.shape[1:] if isinstance(image, Tensor) else image.shape[:2]
    if min(height, width) < recipe.scale:
        raise DataError(f"an image of {width}x{height} is too small for scale {recipe.scale}")


def _degrade(recipe: Recipe, image: Any, ops: Any) -> Any:
    """The steps on an array or tensor, with the operations for its kind."""
    result = image
    for _, after in _stages(recipe, image, ops):
        result = after
    return ops.finish(result)


def _stages(recipe: Recipe, image: Any, ops: Any) -> Iterator[tuple[Step, Any]]:
    height, width = ops.size_of(image)
    for step in recipe.steps:
        image = _apply(step, image, ops, (height / recipe.scale, width / recipe.scale))
        yield step, image


def _apply(step: Step, image: Any, ops: Any, lq_size: tuple[float, float]) -> Any:
    match step:
        case Blur():
            return ops.blur(image, step.kernel)
        case Resize():
            return _resize(step, image, ops, lq_size)
        case GaussianNoise():
            return ops.gaussian_noise(image, step)
        case PoissonNoise():
            return ops.poisson_noise(image, step)
        case SensorNoise():
            return ops.sensor_noise(image, step)
        case Compress():
            return ops.compress(image, step)


def _resize(step: Resize, image: Any, ops: Any, lq_size: tuple[float, float]) -> Any:
    base = lq_size if step.of == "lq" else ops.size_of(image)
    size = (max(int(base[0] * step.factor), 1), max(int(base[1] * step.factor), 1))
    if size == ops.size_of(image) and (step.of == "lq" or step.factor == 1):
        return image
    # By the factor where one is given, as the published code does; torch needs a size where that would leave nothing.
    factor = step.factor if step.of == "input" and min(base[0] * step.factor, base[1] * step.factor) >= 1 else None
    return ops.resize(image, step.mode, size, factor)
