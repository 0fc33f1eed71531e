"""PSNR and SSIM as the field reports them: on RGB or on the Y channel, with a border cropped.

:func:`psnr` and :func:`ssim` take RGB arrays. :func:`calculate_psnr` and :func:`calculate_ssim` are the same metrics
with BasicSR's signatures and channel order (BGR), and are registered under BasicSR's names. They do not take
BasicSR's ``**kwargs``, so a misspelt argument in an option file is detected.

SSIM follows Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE TIP 2004: Gaussian window of 11x11 with sigma 1.5, valid region only, K1 = 0.01, K2 = 0.03.
"""

from __future__ import annotations

import cv2
import numpy as np

from safmn.errors import DataError, OptionError
from safmn.registry import METRIC_REGISTRY, OURS
from safmn.value_types import Array

_PEAK = 255.0
_C1 = (0.01 * _PEAK) ** 2
_C2 = (0.03 * _PEAK) ** 2
_WINDOW = 11
_KERNEL = cv2.getGaussianKernel(_WINDOW, 1.5)  # the 11x11 window is its outer product with itself
_RGB_LUMA = np.array([65.481, 128.553, 24.966])  # for channels in [0, 1]: BT.601, 16 to 235, as in MATLAB's rgb2ycbcr
_BGR_LUMA = _RGB_LUMA[::-1]
_STRIP = 64  # rows of the result per step, so that intermediate planes stay in the processor's cache


def psnr(a: Array, b: Array, *, crop: int = 0, y: bool = False) -> float:
    """Return the peak signal-to-noise ratio of two images, in dB; ``inf`` if they are equal.

    Args:
        a: (H, W, 3) RGB or (H, W) or (H, W, 1) grey, any real type, values in [0, 255].
        b: the same shape.
        crop: pixels cropped at each edge.
        y: compare the Y channel (BT.601, 16 to 235, not rounded) of colour images.

    Raises:
        DataError: the shapes differ, or nothing is left after cropping.
        OptionError: ``crop`` is negative.
    """
    return _psnr(*_comparable(a, b, crop, _RGB_LUMA if y else None, least=1))


def ssim(a: Array, b: Array, *, crop: int = 0, y: bool = False) -> float:
    """Return the structural similarity of two images: at most 1, the mean over the channels.

    Args:
        a: (H, W, 3) RGB or (H, W) or (H, W, 1) grey, any real type, values in [0, 255].
        b: the same shape.
        crop: pixels cropped at each edge.
        y: compare the Y channel (BT.601, 16 to 235, not rounded) of colour images.

    Raises:
        DataError: the shapes differ, or fewer than 11 rows or columns are left after cropping.
        OptionError: ``crop`` is negative.
    """
    return _ssim(*_comparable(a, b, crop, _RGB_LUMA if y else None, least=_WINDOW))


@METRIC_REGISTRY.register(suffix=OURS)
def calculate_psnr(
    img: Array, img2: Array, crop_border: int, input_order: str = "HWC", test_y_channel: bool = False
) -> float:
    """Return the PSNR (:func:`psnr`), with the signature and channel order (BGR) of BasicSR's ``calculate_psnr``.

    Args:
        img: (H, W, 3) BGR, or (3, H, W) with ``input_order`` CHW, or (H, W); values in [0, 255].
        img2: the same shape.
        crop_border: pixels cropped at each edge.
        input_order: ``HWC`` or ``CHW``.
        test_y_channel: compare the Y channel of colour images.

    Raises:
        DataError: the shapes differ, or nothing is left after cropping.
        OptionError: ``input_order`` has another value, or ``crop_border`` is negative.
    """
    a, b = _as_hwc(img, input_order), _as_hwc(img2, input_order)
    return _psnr(*_comparable(a, b, crop_border, _BGR_LUMA if test_y_channel else None, least=1))


@METRIC_REGISTRY.register(suffix=OURS)
def calculate_ssim(
    img: Array, img2: Array, crop_border: int, input_order: str = "HWC", test_y_channel: bool = False
) -> float:
    """Return the SSIM (:func:`ssim`), with the signature and channel order (BGR) of BasicSR's ``calculate_ssim``.

    Args:
        img: (H, W, 3) BGR, or (3, H, W) with ``input_order`` CHW, or (H, W); values in [0, 255].
        img2: the same shape.
        crop_border: pixels cropped at each edge.
        input_order: ``HWC`` or ``CHW``.
        test_y_channel: compare the Y channel of colour images.

    Raises:
        DataError: the shapes differ, or fewer than 11 rows or columns are left after cropping.
        OptionError: ``input_order`` has another value, or ``crop_border`` is negative.
    """
    a, b = _as_hwc(img, input_order), _as_hwc(img2, input_order)
    return _ssim(*_comparable(a, b, crop_border, _BGR_LUMA if test_y_channel else None, least=_WINDOW))


@METRIC_REGISTRY.register()
def calculate_max_error(img: Array, img2: Array, crop_border: int, input_order: str = "HWC") -> float:
    """Return the largest difference of any channel of any pixel, in levels of 0 to 255; 0 if the images are equal.

    It shows what a mean hides, such as areas of one colour that come out as another. Use it with ``better: lower``.

    Args:
        img: (H, W, 3) BGR, or (3, H, W) with ``input_order`` CHW, or (H, W); values in [0, 255].
        img2: the same shape.
        crop_border: pixels cropped at each edge.
        input_order: ``HWC`` or ``CHW``.

    Raises:
        DataError: the shapes differ, or nothing is left after cropping.
        OptionError: ``input_order`` has another value, or ``crop_border`` is negative.
    """
    a, b = _comparable(_as_hwc(img, input_order), _as_hwc(img2, input_order), crop_border, None, least=1)
    return float(np.abs(a.astype(np.float64) - b).max())


def _as_hwc(image: Array, input_order: str) -> Array:
    """Return an image in HWC or CHW order as an (H, W, C) view; a grey (H, W) image is unchanged."""
    if input_order not in ("HWC", "CHW"):
        raise OptionError(f"input_order: {input_order!r}; choose HWC or CHW")
    return image.transpose(1, 2, 0) if input_order == "CHW" and image.ndim == 3 else image


def _comparable(a: Array, b: Array, crop: int, luma: Array | None, *, least: int) -> tuple[Array, Array]:
    """Check and crop both images and, if ``luma`` is given, reduce colour to Y: (H, W) or (H, W, C)."""
    if a.shape != b.shape:
        raise DataError(f"the two images to compare must have the same shape, not {a.shape} and {b.shape}")
    if crop < 0:
        raise OptionError(f"crop_border: {crop}; it must not be negative")
    height, width = a.shape[:2]
    if min(height, width) - 2 * crop < least:
        raise DataError(
            f"an image of {width}x{height} is too small to compare: at least {least}x{least} pixels must remain"
            f" after cropping a border of {crop}"
        )
    inside = np.s_[crop : height - crop, crop : width - crop]
    a, b = a[inside], b[inside]
    if luma is not None and a.ndim == 3 and a.shape[2] == 3:
        return _y_channel(a, luma), _y_channel(b, luma)
    return a, b


def _y_channel(image: Array, luma: Array) -> Array:
    """Return the Y channel of an (H, W, 3) image with channel weights ``luma``: (H, W) float32 in [16, 235], unrounded.

    The steps, with float32 between them, follow BasicSR. An exact Y (:func:`safmn.imaging.rgb_to_y`) changes the fifth
    decimal of the PSNR of nearly equal images.
    """
    scaled = (image.astype(np.float32) / np.float32(255)).astype(np.float64)
    y = np.asarray(cv2.transform(scaled, luma[None]), np.float64)  # (H, W)
    y += 16.0
    y /= 255.0
    return y.astype(np.float32) * np.float32(255)


def y_of_bgr(image: Array) -> Array:
    """Return what :func:`calculate_psnr` and :func:`calculate_ssim` compare of an image with ``test_y_channel``.

    They take the result in the place of the image, so that both need it only once.

    Args:
        image: (H, W, 3) BGR, values in [0, 255]; others are returned as they are.
    """
    return _y_channel(image, _BGR_LUMA) if image.ndim == 3 and image.shape[2] == 3 else image


def _psnr(a: Array, b: Array) -> float:
    if a.dtype == b.dtype == np.uint8:
        squared_error = cv2.norm(a, b, cv2.NORM_L2SQR)  # exact, because the sum is over integers
    else:
        difference = a.astype(np.float64) - b
        squared_error = float(np.vdot(difference, difference))
    if squared_error == 0:
        return float("inf")
    return float(10 * np.log10(_PEAK**2 * a.size / squared_error))


def _ssim(a: Array, b: Array) -> float:
    rows = a.shape[0] - _WINDOW + 1
    total = 0.0
    for top in range(0, rows, _STRIP):
        strip = np.s_[top : min(top + _STRIP, rows) + _WINDOW - 1]
        total += _ssim_sum(a[strip].astype(np.float64), b[strip].astype(np.float64))
    return total / (rows * (a.shape[1] - _WINDOW + 1) * (a.size // (a.shape[0] * a.shape[1])))


def _ssim_sum(a: Array, b: Array) -> float:
    """Return the sum of two float64 strips' SSIM map, with four filters: only the sum of both variances is needed."""
    mean_a, mean_b = _smooth(a), _smooth(b)
    means_product = mean_a * mean_b
    means_squared = mean_a * mean_a + mean_b * mean_b
    covariance = _smooth(a * b) - means_product
    variances = _smooth(a * a + b * b) - means_squared
    numerator = (2 * means_product + _C1) * (2 * covariance + _C2)
    denominator = (means_squared + _C1) * (variances + _C2)
    return float((numerator / denominator).sum())


def _smooth(plane: Array) -> Array:
    """Apply the Gaussian window to (H, W) or (H, W, C) float64; return the valid region (H - 10, W - 10[, C])."""
    half = _WINDOW // 2
    return cv2.sepFilter2D(plane, -1, _KERNEL, _KERNEL)[half:-half, half:-half]
