"""Compare the LQ image of a pair with its GT image: content, displacement, order of the colours, kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from safmn.imaging import imresize, rgb_to_y
from safmn.value_types import Array

_UNLIKE = 0.5  # correlation below which LQ and GT do not show the same
_SHIFT = 0.9  # LQ pixels of displacement that are refused
_SURE = 0.5  # response of the phase correlation above which a displacement is believed
_FLAT = 1.0  # levels: standard deviation of an image of one colour
_SWAPPED = 4.0  # by what factor the squared error falls with red and blue exchanged
_COLOURFUL = 9.0  # squared levels: error below which the order of the colours cannot be told
_RANGE = 3.0  # by what factor the brightest levels of LQ and GT must differ to be reported
_DARK = 90.0  # levels: where both images are darker, their ranges are not compared; Y begins at 16
_SAME = 0.6  # levels: mean difference of two reductions by the same kernel, which round differently
_OTHER = 1.5  # by what factor that of another kernel is larger


class Compared(NamedTuple):
    """A pair as the checks take it.

    Attributes:
        gt: GT image, (H, W, C) RGB, uint8 or uint16.
        lq: LQ image, (h, w, C).
        gt_path: for messages.
        lq_path: for messages.
        scale: GT pixels per LQ pixel.
    """

    gt: Array
    lq: Array
    gt_path: str
    lq_path: str
    scale: int

    def fitting_gt(self) -> Array:
        """Return the GT image without the rows and columns that the LQ image does not show."""
        height, width = self.lq.shape[:2]
        return self.gt[: height * self.scale, : width * self.scale]


def mismatch(pair: Compared) -> str | None:
    """Return why LQ cannot be a reduction of GT; None if it may be."""
    return _displaced(pair) or _swapped(pair) or _other_range(pair)


def _displaced(pair: Compared) -> str | None:
    """Return a sentence if the content differs, or is shifted."""
    height, width = pair.lq.shape[:2]
    small = cv2.resize(_luma(pair.fitting_gt()), (width, height), interpolation=cv2.INTER_AREA)
    other = _luma(pair.lq)
    if min(small.std(), other.std()) < _FLAT or min(height, width) < 16:
        return None
    likeness = float(np.corrcoef(small.ravel(), other.ravel())[0, 1])
    (across, down), response = cv2.phaseCorrelate(small, other, cv2.createHanningWindow((width, height), cv2.CV_32F))
    shifted = response > _SURE and max(abs(across), abs(down)) > _SHIFT
    if likeness < _UNLIKE and not shifted:
        return f"{pair.gt_path} and {pair.lq_path} do not show the same picture (correlation {likeness:.2f})"
    if shifted:
        return (
            f"{pair.lq_path} is shifted against {pair.gt_path} by {across:.1f}, {down:.1f} LQ pixels: make the LQ "
            "image again (safmn prepare lr)"
        )
    return None


def _swapped(pair: Compared) -> str | None:
    """Return a sentence if red and blue are exchanged in one of the images."""
    if pair.gt.ndim != 3 or pair.gt.shape[2] < 3 or pair.lq.ndim != 3 or pair.lq.shape[2] < 3:
        return None
    height, width = pair.lq.shape[:2]
    small = cv2.resize(_levels(pair.fitting_gt()[..., :3]), (width, height), interpolation=cv2.INTER_AREA)
    lq = _levels(pair.lq[..., :3])
    straight, exchanged = (float(np.square(small - each).mean()) for each in (lq, lq[..., ::-1]))
    if straight < _COLOURFUL or exchanged * _SWAPPED > straight:
        return None
    return f"red and blue are exchanged between {pair.gt_path} and {pair.lq_path}: one of them was written as BGR"


def _other_range(pair: Compared) -> str | None:
    """Return a sentence if one image uses a small part of the range of values that the other uses."""
    gt, lq = (float(np.percentile(_luma(image), 99)) for image in (pair.fitting_gt(), pair.lq))
    if max(gt, lq) < _DARK or max(gt, lq) < _RANGE * min(gt, lq):
        return None
    name, level, other, of_other = (
        (pair.lq_path, lq, pair.gt_path, gt) if lq < gt else (pair.gt_path, gt, pair.lq_path, lq)
    )
    return (
        f"{name} is nearly black (up to level {level:.0f} of 255), {other} is not ({of_other:.0f}): it was written "
        "with another range of values"
    )


def _levels(image: Array) -> Array:
    levels: Array = image.astype(np.float32) if image.dtype == np.uint8 else (image / 257.0).astype(np.float32)
    return levels


def _luma(image: Array) -> Array:
    return np.ascontiguousarray(rgb_to_y(image if image.dtype == np.uint8 else image / 257.0), np.float32)


def other_kernel(pairs: Sequence[Compared]) -> str | None:
    """Return the name of the kernel by which all LQ images were made, if it is not MATLAB's bicubic; None if unknown.

    Only LQ images that equal a reduction nearly exactly are told: degraded ones, and those of a camera, are not.
    """
    names = {_kernel_of(pair) for pair in pairs}
    return names.pop() if len(names) == 1 else None


def _kernel_of(pair: Compared) -> str | None:
    gt = pair.fitting_gt()
    if gt.dtype != np.uint8 or pair.lq.dtype != np.uint8 or gt.ndim != 3 or gt.shape[2] != 3 or pair.scale < 2:
        return None
    size = pair.lq.shape[1], pair.lq.shape[0]
    matlab = _difference(imresize(gt, 1 / pair.scale), pair.lq)
    found = {name: _difference(make(gt, size), pair.lq) for name, make in _KERNELS.items()}
    best = min(found, key=lambda name: found[name])
    return best if found[best] < _SAME < matlab and found[best] * _OTHER < matlab else None


def _difference(a: Array, b: Array) -> float:
    return float(np.abs(a.astype(np.float32) - b).mean()) if a.shape == b.shape else np.inf


def _by_opencv(how: int) -> Callable[[Array, tuple[int, int]], Array]:
    return lambda image, size: np.asarray(cv2.resize(image, size, interpolation=how))


def _by_pillow(how: Image.Resampling) -> Callable[[Array, tuple[int, int]], Array]:
    return lambda image, size: np.asarray(Image.fromarray(image).resize(size, how))


_KERNELS: dict[str, Callable[[Array, tuple[int, int]], Array]] = {
    "the mean of blocks (OpenCV's INTER_AREA)": _by_opencv(cv2.INTER_AREA),  # at x2, its bilinear is the same
    "OpenCV's bicubic, which does not smooth": _by_opencv(cv2.INTER_CUBIC),
    "OpenCV's bilinear, which does not smooth": _by_opencv(cv2.INTER_LINEAR),
    "leaving out pixels (nearest)": _by_opencv(cv2.INTER_NEAREST),
    "Pillow's bicubic": _by_pillow(Image.Resampling.BICUBIC),
    "Pillow's bilinear": _by_pillow(Image.Resampling.BILINEAR),
    "Pillow's Lanczos": _by_pillow(Image.Resampling.LANCZOS),
}
