"""MATLAB's bicubic ``imresize``, bit for bit on 8-bit images.

The community's low-resolution sets (DIV2K, Set5, Set14, ...) were made in MATLAB from uint8 arrays. Python ports miss
one point: each of the two passes returns the image's own type, so an 8-bit image is rounded twice. The rules, for one
axis and a scale ``s`` (1-based indices, double precision):

- output sample ``x`` is centred at ``u = x/s + (1 - 1/s)/2``; the kernel is the cubic with a = -0.5, widened by ``1/s``
  if the axis shrinks (antialiasing); its weights are divided by their sum;
- indices beyond the border are mirrored with the edge sample repeated ("symmetric", MATLAB since about 2015) or clamped
  ("replicate", older MATLAB);
- the axis that shrinks most comes first (rows, the vertical pass, if both shrink equally);
- after each pass integers become ``floor(value + 0.5)``, clamped to the type's range; floats are kept.

Speed: on 8-bit images and at the usual integer factors, a pass uses PyTorch's fixed-point bicubic, which rounds
identically there (see :func:`_resize_rows_in_fixed_point`). Otherwise a pass is a sparse matrix whose rows hold the
output samples' taps. It is applied in double precision to blocks of columns that stay in the processor's cache.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import torch
from scipy.sparse import csr_matrix

from safmn.errors import DataError
from safmn.value_types import Array

Border = Literal["symmetric", "replicate"]

logger = logging.getLogger(__name__)

_KERNEL_WIDTH = 4.0
_TIE = 1e-9
_BLOCK = 256  # columns per step: the rows of one sum of taps (16 of 2 KB at x4) stay in the L1 cache
_FIXED_POINT_SCALES = (1 / 8, 1 / 4, 1 / 3, 1 / 2, 2.0, 3.0, 4.0)
_FIXED_POINT_MARGIN = 3  # samples added beyond each border, on the coarser grid: more than half a kernel
_FIXED_POINT_CHANNELS = 4  # of the image that the fixed-point kernel gets
_DTYPES = (np.uint8, np.uint16, np.float32, np.float64)


def imresize(
    image: Array,
    scale: float | None = None,
    *,
    border: Border = "symmetric",
    output_shape: tuple[int, int] | None = None,
    antialiasing: bool = True,
) -> Array:
    """Resize like MATLAB's ``imresize(image, scale, "bicubic")``.

    Args:
        image: (H, W) or (H, W, C), uint8, uint16, float32 or float64. Integers are rounded and clamped after each
            pass; floats are neither.
        scale: output size divided by input size; ``1 / 4`` makes the LR image of "x4". The output is
            ``ceil(scale * H)`` by ``ceil(scale * W)``; crop first (:func:`safmn.imaging.mod_crop`) for exact multiples.
        border: "symmetric" (MATLAB since about 2015) or "replicate" (older MATLAB).
        output_shape: (height, width) of the output. Without ``scale``, each axis is scaled to fit. With ``scale``, the
            samples follow ``scale`` and this gives only their number.
        antialiasing: widen the kernel along an axis that shrinks.

    Returns:
        The resized image, C-contiguous, with the input's type and number of dimensions.

    Raises:
        DataError: the image or an argument is invalid.
    """
    scales, (height, width) = _geometry(image, scale, output_shape)
    if border not in ("symmetric", "replicate"):
        raise DataError(f"border={border!r}: imresize needs 'symmetric' or 'replicate'")
    channels = 1 if image.ndim == 2 else image.shape[2]
    result = np.ascontiguousarray(image).reshape(*image.shape[:2], channels)
    vertical_first = scales[0] <= scales[1]
    if vertical_first:
        result = _resize_rows(result, height, scales[0], border, antialiasing)  # (height, W, C)
    result = _transpose(_resize_rows(_transpose(result), width, scales[1], border, antialiasing))
    if not vertical_first:
        result = _resize_rows(result, height, scales[0], border, antialiasing)
    return result.reshape(height, width, *image.shape[2:])


def _geometry(
    image: Array, scale: float | None, output_shape: tuple[int, int] | None
) -> tuple[tuple[float, float], tuple[int, int]]:
    """Check the arguments; return the scale of each axis, and the output's height and width."""
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or image.dtype not in _DTYPES:
        what = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"imresize needs an (H, W) or (H, W, C) array of uint8, uint16, float32 or float64, not {what}")
    if 0 in image.shape:
        raise DataError(f"imresize cannot resize an empty image (shape {image.shape})")
    if scale is None and output_shape is None:
        raise DataError("imresize needs a scale or an output_shape")
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise DataError(f"scale={scale!r}: imresize needs a positive number")
    if output_shape is not None and (len(output_shape) != 2 or any(int(n) != n or n < 1 for n in output_shape)):
        raise DataError(f"output_shape={output_shape!r}: imresize needs a positive (height, width)")
    height, width = image.shape[:2]
    if output_shape is None:
        assert scale is not None
        return (float(scale), float(scale)), (math.ceil(scale * height), math.ceil(scale * width))
    shape = (int(output_shape[0]), int(output_shape[1]))
    scales = (shape[0] / height, shape[1] / width) if scale is None else (float(scale), float(scale))
    return scales, shape


def _transpose(image: Array) -> Array:
    """Transpose (H, W, C) to contiguous (W, H, C). Up to 4 channels, OpenCV is several times faster than numpy."""
    height, width, channels = image.shape
    if channels > 4:
        return np.ascontiguousarray(image.swapaxes(0, 1))
    return np.asarray(cv2.transpose(image)).reshape(width, height, channels)


def _resize_rows(image: Array, rows: int, scale: float, border: Border, antialiasing: bool) -> Array:
    """Resize along axis 0 (one pass): (H, W, C) to (rows, W, C) of the same type."""
    height, width, channels = image.shape
    columns = image.reshape(height, width * channels)
    usual = image.dtype == np.uint8 and scale in _FIXED_POINT_SCALES and rows == math.ceil(scale * height)
    if usual and antialiasing and _fixed_point_is_exact(scale):
        result = _resize_rows_in_fixed_point(columns, rows, scale, border)
    else:
        result = _resize_rows_by_matrix(columns, rows, scale, border, antialiasing)
    return result.reshape(rows, width, channels)


def _resize_rows_in_fixed_point(columns: Array, rows: int, scale: float, border: Border) -> Array:
    """Resize uint8 (H, N) to (rows, N) with PyTorch's antialiased bicubic (a = -0.5), at scales where it is exact.

    That kernel scales the weights by the largest power of two at which all of them fit int16, sums in int32, adds a
    half, shifts and clamps. At x2, x4 and x8 the weights are multiples of 2^-7 to 2^-16, so weights, sums and rounding
    are exact. At x3 they are multiples of 1/81 (up: 1/27), so an exact sum is at least 1/162 (1/54) away from the next
    half, while weights of 16 (14) bits change it by less than 0.0052 (0.0156).
    """
    height, width = columns.shape
    factor = round(max(scale, 1 / scale))
    shrinks = scale < 1
    margin = _FIXED_POINT_MARGIN * factor if shrinks else _FIXED_POINT_MARGIN
    rest = -height % factor if shrinks else 0
    # The kernel drops taps beyond the borders, so the image is extended. Its width is padded to whole 4-channel pixels.
    fill = -width % _FIXED_POINT_CHANNELS
    extended = np.pad(columns, ((margin, margin + rest), (0, fill)), "symmetric" if border == "symmetric" else "edge")
    pixels = torch.from_numpy(extended.reshape(1, len(extended), -1, _FIXED_POINT_CHANNELS)).permute(0, 3, 1, 2)
    size = (len(extended) // factor if shrinks else len(extended) * factor, pixels.shape[3])
    resized = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)  # (1, 4, size)
    result = resized.permute(0, 2, 3, 1).reshape(size[0], width + fill).numpy()
    start = _FIXED_POINT_MARGIN if shrinks else _FIXED_POINT_MARGIN * factor
    return result[start : start + rows, :width]


@lru_cache(maxsize=len(_FIXED_POINT_SCALES))
def _fixed_point_is_exact(scale: float) -> bool:
    """Return whether this build of PyTorch rounds as described above: tested on noise, once per scale and process."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 256), dtype=np.uint8)
    rows = math.ceil(scale * len(noise))
    fast = _resize_rows_in_fixed_point(noise, rows, scale, "symmetric")
    exact = bool(np.array_equal(fast, _resize_rows_by_matrix(noise, rows, scale, "symmetric", True)))
    if not exact:
        logger.warning("PyTorch's uint8 bicubic is not exact at scale %g on this machine, so imresize is slower", scale)
    return exact


def _resize_rows_by_matrix(columns: Array, rows: int, scale: float, border: Border, antialiasing: bool) -> Array:
    """Resize (H, N) to (rows, N) of the same type, at any scale and type, summed in double precision.

    A sum within 1e-9 of a half counts as that half. If weights have no exact double (for example at scale 1.5), the
    last bit of a tie depends on the order of the sum and on the compiler.
    """
    height, width = columns.shape
    taps = _matrix(height, rows, scale, border, antialiasing)
    result = np.empty((rows, width), columns.dtype)
    for start in range(0, width, _BLOCK):
        block = taps @ columns[:, start : start + _BLOCK].astype(np.float64)
        if columns.dtype.kind == "u":
            block += 0.5 + _TIE  # the cast below truncates, which equals floor because nothing is negative
            np.clip(block, 0, np.iinfo(columns.dtype).max, out=block)
        result[:, start : start + _BLOCK] = block
    return result


def _cubic(x: Array) -> Array:
    """Return the cubic convolution kernel with a = -0.5 (Keys 1981) at ``x``; it is zero beyond 2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _contributions(
    length: int, out_length: int, scale: float, border: Border, antialiasing: bool
) -> tuple[Array, Array]:
    """Return the weights (out_length, taps) in double precision and the 0-based input index of each weight."""
    shrink = min(scale, 1.0) if antialiasing else 1.0
    width = _KERNEL_WIDTH / shrink
    u = np.arange(1, out_length + 1, dtype=np.float64) / scale + 0.5 * (1 - 1 / scale)
    indices = np.floor(u - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    weights = shrink * _cubic(shrink * (u[:, None] - indices))
    weights /= weights.sum(axis=1, keepdims=True)
    used = (weights != 0).any(axis=0)
    weights, indices = weights[:, used], indices[:, used].astype(np.int64) - 1
    if border == "replicate":
        return weights, np.clip(indices, 0, length - 1)
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    return weights, mirrored[indices % (2 * length)]


@lru_cache(maxsize=64)
def _matrix(length: int, out_length: int, scale: float, border: Border, antialiasing: bool) -> csr_matrix:
    """Return the (out_length, length) matrix of one pass. A row holds the taps of one output sample."""
    weights, indices = _contributions(length, out_length, scale, border, antialiasing)
    starts = np.arange(out_length + 1) * weights.shape[1]
    return csr_matrix((weights.ravel(), indices.ravel(), starts), shape=(out_length, length))
