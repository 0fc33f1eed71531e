"""Distances between two sets of feature vectors, in float64."""

from __future__ import annotations

import math

import numpy as np

from safmn.value_types import Array


def frechet(a: Array, b: Array) -> float:
    """Return the squared Fréchet distance of the normal distributions with the sets' means and covariances.

    It is ``|mean_a - mean_b|² + tr(A + B - 2 (A B)^(1/2))`` (Heusel et al., NeurIPS 2017), with unbiased covariances A
    and B. With A = X'X and B = Y'Y, the trace of the root is the sum of the singular values of XY'. So no root of
    a matrix without full rank is needed, which small sets would give.

    Args:
        a: (n, features).
        b: (m, features).

    Returns:
        The distance, at least 0; NaN if a set has fewer than two vectors.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    mean_a, mean_b = (each.astype(np.float64).mean(axis=0) for each in (a, b))
    x = (a - mean_a) / math.sqrt(len(a) - 1)
    y = (b - mean_b) / math.sqrt(len(b) - 1)
    spread = float(np.vdot(x, x) + np.vdot(y, y))
    triangle_x, triangle_y = (np.asarray(np.linalg.qr(each, mode="r")) for each in (x, y))  # at most features rows
    common = float(np.linalg.norm(triangle_x @ triangle_y.T, "nuc"))  # the sum of the singular values
    return max(float(np.square(mean_a - mean_b).sum()) + spread - 2 * common, 0.0)


def polynomial_mmd(a: Array, b: Array) -> float:
    """Return the unbiased squared MMD with the kernel ``(x·y / features + 1)³`` (KID; Bińkowski et al., ICLR 2018).

    All vectors are used at once, instead of random subsets. It may be slightly negative.

    Args:
        a: (n, features).
        b: (m, features).

    Returns:
        The squared MMD; NaN if a set has fewer than two vectors.
    """
    if min(len(a), len(b)) < 2:
        return math.nan

    def kernel(x: Array, y: Array) -> Array:
        result: Array = (x @ y.T / x.shape[1] + 1) ** 3
        return result

    a, b = a.astype(np.float64), b.astype(np.float64)

    def within(x: Array) -> float:
        values = kernel(x, x)
        return float(values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def gaussian_mmd(a: Array, b: Array, *, sigma: float = 10.0, factor: float = 1000.0) -> float:
    """Return the squared MMD with a Gaussian kernel, times ``factor`` (CMMD; Jayasumana et al., CVPR 2024).

    It is the estimate with the smallest variance, which includes each vector's distance to itself.

    Args:
        a: (n, features).
        b: (m, features).
        sigma: width of the kernel.
        factor: factor of the result.

    Returns:
        The scaled squared MMD, at least 0; NaN if a set is empty.
    """
    if not len(a) or not len(b):
        return math.nan

    def mean(x: Array, y: Array) -> float:
        squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * x @ y.T
        return float(np.exp(squares / (-2 * sigma**2)).mean())

    a, b = a.astype(np.float64), b.astype(np.float64)
    return factor * max(mean(a, a) + mean(b, b) - 2 * mean(a, b), 0.0)
