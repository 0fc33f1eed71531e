"""Build blur kernels (Real-ESRGAN, arXiv 2107.10833, section 3.1) from their parameters, and factorise them."""

from __future__ import annotations

import numpy as np
from scipy.special import j1

from safmn.degradations.recipe import Kernel
from safmn.value_types import Array

_SEPARABLE_ERROR = 1e-6  # largest sum of absolute differences, which bounds the error on an image in [0, 1]


def weights(kernel: Kernel) -> Array:
    """Return the kernel as float64 weights of shape (size, size) that sum to 1."""
    radius = kernel.size // 2
    axis = np.arange(-radius, radius + 1, dtype=np.float64)
    if kernel.kind == "sinc":
        values = _sinc(np.hypot(axis[:, None], axis[None, :]), kernel.cutoff)
    else:
        with np.errstate(over="ignore"):  # an overflow to infinity becomes weight 0
            values = _family(kernel, _squared_distance(kernel, axis))
    return np.asarray(values / values.sum())


def _family(kernel: Kernel, distance: Array) -> Array:
    """Return the weights, not normalised, as a function of the squared Mahalanobis distance."""
    if kernel.kind.startswith("plateau"):
        return np.asarray(1 / (distance**kernel.beta + 1))
    exponent = distance**kernel.beta if kernel.kind.startswith("generalized") else distance
    return np.asarray(np.exp(-0.5 * exponent))


def _squared_distance(kernel: Kernel, axis: Array) -> Array:
    """Return the squared Mahalanobis distance of every pixel under the rotated covariance: (size, size)."""
    cos, sin = np.cos(kernel.rotation), np.sin(kernel.rotation)
    x, y = axis[None, :], axis[:, None]
    along, across = cos * x + sin * y, cos * y - sin * x  # coordinates along the axes of the ellipse
    return np.asarray((along / kernel.sigma_x) ** 2 + (across / kernel.sigma_y) ** 2)


def _sinc(radius: Array, cutoff: float) -> Array:
    """Return the ideal circular low-pass filter, J1(cutoff r) cutoff / (2 pi r), ``radius`` pixels from the centre."""
    safe = np.where(radius == 0, 1, radius)
    return np.where(radius == 0, cutoff**2 / (4 * np.pi), cutoff * j1(cutoff * safe) / (2 * np.pi * safe))


def separable(values: Array) -> tuple[Array, Array] | None:
    """Factorise a kernel into separable filters: ``values`` is the sum over r of outer(columns[r], rows[r]).

    The error on images in [0, 1] is at most 1e-6, about the rounding error of float32 sums. Separable filters take
    2 * rank * size multiplications instead of size**2, and each takes about 1.5 times as long.

    Returns:
        Columns and rows, (rank, size) each; None if filtering with ``values`` directly is less work.
    """
    size = len(values)
    u, singular, v = np.linalg.svd(values)
    for rank in range(1, size // 3 + 1):
        columns, rows = (u[:, :rank] * singular[:rank]).T, v[:rank]
        if _error(values, columns, rows) <= _SEPARABLE_ERROR:
            symmetric = _exactly_symmetric(columns), _exactly_symmetric(rows)
            return symmetric if _error(values, *symmetric) <= _SEPARABLE_ERROR else (columns, rows)
    return None


def _error(values: Array, columns: Array, rows: Array) -> float:
    return float(np.abs(values - columns.T @ rows).sum())


def _exactly_symmetric(vectors: Array) -> Array:
    """Make the vectors exactly even or odd: OpenCV filters twice as fast with such vectors.

    The kernels are symmetric about their centre, so their singular vectors are even or odd except for rounding.
    """
    even, odd = (vectors + vectors[:, ::-1]) / 2, (vectors - vectors[:, ::-1]) / 2
    is_even = np.abs(even).sum(axis=1) >= np.abs(odd).sum(axis=1)
    return np.where(is_even[:, None], even, odd)
