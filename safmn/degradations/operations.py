"""The steps of a recipe on float32 arrays, (H, W, 3) RGB in [0, 1], mostly with OpenCV. Each returns a new array."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np
import torch
from PIL import Image

from safmn.degradations import fields, kernels
from safmn.degradations.diffjpeg import diffjpeg
from safmn.degradations.recipe import Compress, GaussianNoise, Kernel, PoissonNoise, ResizeMode, SensorNoise
from safmn.imaging import imresize
from safmn.value_types import Array

USM_RADIUS = 51  # side of the Gaussian; Real-ESRGAN's radius of 50, made odd
USM_SIGMA = 0.3 * ((USM_RADIUS - 1) * 0.5 - 1) + 0.8  # OpenCV's default for that side: 8
USM_THRESHOLD = 10  # grey levels
USM_WEIGHT = 0.5
DISPLAY_GAMMA = 2.2
GREY_WEIGHTS = [0.2989, 0.587, 0.114]  # of R, G, B, as in torchvision
_MIRROR = cv2.BORDER_REFLECT_101
_DIRECT_TAPS = 129  # OpenCV uses Fourier transforms for larger kernels, which is four times slower at these sizes
_AVIF_SPEED = 8  # of 0 (smallest file) to 10


def size_of(image: Array) -> tuple[int, int]:
    """Return height and width."""
    return image.shape[0], image.shape[1]


def from_uint8(image: Array) -> Array:
    """Convert uint8 or uint16 to float32 in [0, 1], bit for bit as :func:`safmn.imaging.to_tensor` does."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def sharpen(image: Array) -> Array:
    """Sharpen with Real-ESRGAN's USM: unsharp masking, blended in by a soft mask of detail above the threshold."""
    side = (USM_RADIUS, USM_RADIUS)
    residual = cv2.subtract(image, cv2.GaussianBlur(image, side, USM_SIGMA, borderType=_MIRROR))
    mask = (np.abs(residual) * 255 > USM_THRESHOLD).astype(np.float32)
    soft_mask = cv2.GaussianBlur(mask, side, USM_SIGMA, borderType=_MIRROR)
    sharp = np.clip(cv2.scaleAdd(residual, USM_WEIGHT, image), 0, 1)
    return np.asarray(soft_mask * sharp + (1 - soft_mask) * image)


def blur(image: Array, kernel: Kernel) -> Array:
    """Correlate with the kernel, with mirrored borders; use a sum of separable filters if that is less work."""
    values = kernels.weights(kernel)
    factors = kernels.separable(values)
    if factors is None:
        return _correlate(image, values.astype(np.float32))
    parts = [cv2.sepFilter2D(image, -1, row, column, borderType=_MIRROR) for column, row in zip(*factors, strict=True)]
    result = parts[0]
    for part in parts[1:]:
        result = cv2.add(result, part, dst=result)
    return np.asarray(result)


def _correlate(image: Array, values: Array) -> Array:
    """Correlate with any kernel, in bands of rows small enough for OpenCV to filter them directly."""
    size = len(values)
    bands = math.ceil(size / (_DIRECT_TAPS // size))
    if bands == 1:
        return np.asarray(cv2.filter2D(image, -1, values, borderType=_MIRROR))
    radius, (height, width) = size // 2, size_of(image)
    padded = cv2.copyMakeBorder(image, radius, radius, radius, radius, _MIRROR)
    edges = [size * band // bands for band in range(bands + 1)]
    result = np.zeros_like(image)
    for first, last in pairwise(edges):
        strip = padded[first : height + last - 1]
        part = cv2.filter2D(strip, -1, values[first:last], anchor=(radius, 0), borderType=cv2.BORDER_CONSTANT)
        cv2.add(result, part[:height, radius : radius + width], dst=result)
    return result


def resize(image: Array, mode: ResizeMode, size: tuple[int, int], factor: float | None) -> Array:
    """Resize to (height, width).

    Args:
        image: float32 (H, W, 3).
        mode: see :class:`safmn.degradations.recipe.Resize`.
        size: (height, width) of the result.
        factor: the exact ratio if ``size`` was rounded from it; torch then samples at multiples of ``1 / factor``.
    """
    if mode == "lanczos":
        channels = [Image.fromarray(image[..., c]).resize(size[::-1], Image.Resampling.LANCZOS) for c in range(3)]
        return np.stack([np.asarray(channel) for channel in channels], axis=-1)
    if mode == "matlab_bicubic":
        return from_uint8(imresize(_to_uint8(image), output_shape=size))
    if mode == "bilinear":  # OpenCV, because the last bits of torch's result depend on the number of threads
        return _bilinear(image, size, factor)
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last
    result = interpolate(planes, mode, size, factor)
    return np.ascontiguousarray(result[0].permute(1, 2, 0).numpy())


def _bilinear(image: Array, size: tuple[int, int], factor: float | None) -> Array:
    if factor is None:
        return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR))
    larger = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)  # its size is rounded
    return np.ascontiguousarray(larger[: size[0], : size[1]])


def interpolate(planes: torch.Tensor, mode: ResizeMode, size: tuple[int, int], factor: float | None) -> torch.Tensor:
    """Call :func:`torch.nn.functional.interpolate` on (1, C, H, W), by ``factor``, or to ``size`` if it is None."""
    if factor is None:
        return torch.nn.functional.interpolate(planes, size=size, mode=mode)
    return torch.nn.functional.interpolate(planes, scale_factor=factor, mode=mode)


def gaussian_noise(image: Array, step: GaussianNoise) -> Array:
    """Add Gaussian noise and clamp to [0, 1]."""
    noise = fields.normal(step.seed, *size_of(image), grey=step.grey)
    noise *= np.float32(step.sigma / 255)
    return _clamp(image + noise)


def poisson_noise(image: Array, step: PoissonNoise) -> Array:
    """Add Poisson noise and clamp to [0, 1]. Counts follow the image, or its grey version, rounded to 8 bits."""
    level = _to_uint8(image @ np.array(GREY_WEIGHTS, np.float32)[:, None] if step.grey else image)
    levels = fields.poisson_levels(int(np.count_nonzero(np.bincount(level.ravel(), minlength=256))))
    bins = fields.uniform_bins(step.seed, *size_of(image), grey=step.grey)
    entries = np.left_shift(level, fields.POISSON_BITS, dtype=np.int32)
    entries |= bins
    noise = fields.poisson_quantiles(levels).take(entries).astype(np.float32)
    noise *= np.float32(1 / levels)
    noise -= level * np.float32(1 / 255)
    noise *= np.float32(step.scale)
    return _clamp(image + noise)


def sensor_noise(image: Array, step: SensorNoise) -> Array:
    """Add sensor noise in linear light and convert back to display values in [0, 1]."""
    light = np.power(np.clip(image, 0, 1), np.float32(DISPLAY_GAMMA))
    deviation = np.sqrt(np.float32(step.shot) * light + np.float32(step.read**2))
    noisy = light + deviation * fields.normal(step.seed, *size_of(image), grey=False)
    return np.asarray(np.power(_clamp(noisy), np.float32(1 / DISPLAY_GAMMA)))


def compress(image: Array, step: Compress) -> Array:
    """Encode and decode: ``diffjpeg`` on float values, the other codecs with OpenCV on the image rounded to 8 bits."""
    if step.codec == "diffjpeg":
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return np.ascontiguousarray(diffjpeg(planes.clamp(0, 1), step.quality).permute(1, 2, 0).numpy())
    flags = {
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, step.quality],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, step.quality],
        "avif": [cv2.IMWRITE_AVIF_QUALITY, step.quality, cv2.IMWRITE_AVIF_SPEED, _AVIF_SPEED],
    }[step.codec]
    encoded = cv2.imencode(f".{step.codec}", cv2.cvtColor(_to_uint8(image), cv2.COLOR_RGB2BGR), flags)[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None, f"OpenCV cannot read the {step.codec} file that it wrote"
    return from_uint8(np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)))


def finish(image: Array) -> Array:
    """Clamp to [0, 1] and round to multiples of 1/255."""
    return from_uint8(_to_uint8(image))


def _clamp(image: Array) -> Array:
    """Clamp to [0, 1] in place."""
    return np.clip(image, 0, 1, out=image)


def _to_uint8(image: Array) -> Array:
    """Clamp and convert to uint8, rounding half to even as torch does."""
    return np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)
