"""The steps of a recipe on any torch device: float32 tensors, (3, H, W) RGB in [0, 1].

Twins of :mod:`safmn.degradations.ops_array`. What only CPU libraries can do (Lanczos, MATLAB's bicubic, WebP, AVIF: all
off by default) is done there.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from safmn.degradations import fields, jpeg, kernels, ops_array
from safmn.degradations.recipe import Compress, GaussianNoise, Kernel, PoissonNoise, ResizeMode, SensorNoise


def size_of(image: Tensor) -> tuple[int, int]:
    """Height and width."""
    return image.shape[-2], image.shape[-1]


def sharpen(image: Tensor) -> Tensor:
    """See :func:`safmn.degradations.ops_array.sharpen`."""
    line = cv2.getGaussianKernel(ops_array.USM_RADIUS, ops_array.USM_SIGMA)[:, 0]
    residual = image - _separable(image, line, line)
    mask = (residual.abs() * 255 > ops_array.USM_THRESHOLD).float()
    soft_mask = _separable(mask, line, line)
    sharp = (image + ops_array.USM_WEIGHT * residual).clamp_(0, 1)
    return soft_mask * sharp + (1 - soft_mask) * image


def blur(image: Tensor, kernel: Kernel) -> Tensor:
    """See :func:`safmn.degradations.ops_array.blur`."""
    return _filter(image, kernels.weights(kernel))


def resize(image: Tensor, mode: ResizeMode, size: tuple[int, int], factor: float | None) -> Tensor:
    """See :func:`safmn.degradations.ops_array.resize`."""
    if mode in ("lanczos", "matlab_bicubic"):
        return _from_array(ops_array.resize(_to_array(image), mode, size, factor), image)
    if mode == "bilinear":
        return _bilinear(image, size, factor)
    return ops_array.interpolate(image[None], mode, size, factor)[0]


def gaussian_noise(image: Tensor, step: GaussianNoise) -> Tensor:
    """See :func:`safmn.degradations.ops_array.gaussian_noise`."""
    noise = fields.normal(step.seed, *size_of(image), grey=step.grey)
    return (image + _from_array(noise, image) * (step.sigma / 255)).clamp_(0, 1)


def poisson_noise(image: Tensor, step: PoissonNoise) -> Tensor:
    """See :func:`safmn.degradations.ops_array.poisson_noise`."""
    counted = torch.tensordot(image.new_tensor([ops_array.GREY_WEIGHTS]), image, dims=1) if step.grey else image
    level = (counted.clamp(0, 1) * 255).round_().long()
    levels = fields.poisson_levels(int(torch.bincount(level.view(-1), minlength=256).count_nonzero()))
    bins = fields.uniform_bins(step.seed, *size_of(image), grey=step.grey)
    entries = (level << fields.POISSON_BITS) | _from_array(bins.astype(np.int32), image)
    counts = _quantiles(levels, image.device)[entries]
    return (image + (counts.float() / levels - level / 255) * step.scale).clamp_(0, 1)


def sensor_noise(image: Tensor, step: SensorNoise) -> Tensor:
    """See :func:`safmn.degradations.ops_array.sensor_noise`."""
    light = image.clamp(0, 1) ** ops_array.DISPLAY_GAMMA
    deviation = (step.shot * light + step.read**2).sqrt_()
    noise = _from_array(fields.normal(step.seed, *size_of(image), grey=False), image)
    return (light + deviation * noise).clamp_(0, 1) ** (1 / ops_array.DISPLAY_GAMMA)


def compress(image: Tensor, step: Compress) -> Tensor:
    """JPEG by :mod:`safmn.degradations.jpeg`; other codecs by their libraries, on the CPU."""
    if step.codec == "jpeg":
        return jpeg.libjpeg(image, step.quality)
    if step.codec == "diffjpeg":
        return jpeg.diffjpeg(image.clamp(0, 1), step.quality)
    return _from_array(ops_array.compress(_to_array(image), step), image)


def finish(image: Tensor) -> Tensor:
    """See :func:`safmn.degradations.ops_array.finish`."""
    return (image.clamp(0, 1) * 255).round_().div_(255)


def _bilinear(image: Tensor, size: tuple[int, int], factor: float | None) -> Tensor:
    """As torch's, with positions in double precision, so that it agrees with OpenCV's wherever it runs."""
    for dim, length in ((-1, size[1]), (-2, size[0])):
        last = image.shape[dim] - 1
        step = image.shape[dim] / length if factor is None else 1 / factor
        position = ((np.arange(length) + 0.5) * step - 0.5).clip(0, last)
        below = torch.from_numpy(position.astype(np.int64))
        fraction = torch.from_numpy((position - below.numpy()).astype(np.float32))
        below, fraction = below.to(image.device), fraction.to(image.device)
        low, high = image.index_select(dim, below), image.index_select(dim, (below + 1).clamp_(max=last))
        image = torch.lerp(low, high, fraction if dim == -1 else fraction[:, None])
    return image


@lru_cache(maxsize=16)
def _quantiles(levels: int, device: torch.device) -> Tensor:
    return torch.from_numpy(fields.poisson_quantiles(levels).astype(np.int16)).to(device)  # at most 256 + 8 * 16


def _filter(image: Tensor, values: np.ndarray) -> Tensor:
    """Correlate every channel with (k, l) weights: (3, H, W) -> (3, H, W)."""
    tall, wide = values.shape
    height, width = size_of(image)
    rows, columns = _mirrored(height, tall // 2, image.device), _mirrored(width, wide // 2, image.device)
    padded = image.index_select(-2, rows).index_select(-1, columns)
    weight = torch.from_numpy(values.astype(np.float32)).to(image.device).expand(3, 1, tall, wide)
    return functional.conv2d(padded[None], weight, groups=3)[0]


def _separable(image: Tensor, column: np.ndarray, row: np.ndarray) -> Tensor:
    return _filter(_filter(image, column[:, None]), row[None, :])


def _mirrored(length: int, radius: int, device: torch.device) -> Tensor:
    """Indices of an axis padded by mirroring without repeating the edge; also where the pad is wider than the axis."""
    index = np.abs(np.arange(-radius, length + radius))
    period = max(2 * (length - 1), 1)
    index = index % period
    return torch.from_numpy(np.minimum(index, period - index) if length > 1 else np.zeros_like(index)).to(device)


def _to_array(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())


def _from_array(array: np.ndarray, like: Tensor) -> Tensor:
    """(H, W, C) on the CPU -> (C, H, W) on the device of ``like``."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).to(like.device)
