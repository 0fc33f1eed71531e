"""Make LQ images from GT images while training: MATLAB-exact bicubic reduction, additive noise, JPEG."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import cv2
import msgspec
import numpy as np
from msgspec import Meta

from safmn.errors import OptionError
from safmn.imaging import imresize
from safmn.value_types import Array

# Bounds are checked below: msgspec 0.22 crashes on constraints in both members of such a union.
Level: TypeAlias = float | tuple[float, float]
Quality: TypeAlias = int | tuple[int, int]
_MARGIN = 3  # LQ pixels beside a patch that the bicubic kernel may reach; it needs two


class MadeLQ(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How LQ images are made from GT images; the steps follow each other in this order.

    Attributes:
        noise: Standard deviation of Gaussian noise, in levels of 0 to 255: a number, or a range to draw from.
        grey_noise: Probability that all channels get the same noise.
        jpeg: JPEG quality, 1 to 100: a number, or a range to draw from; null: no JPEG. For images of 8 bits with one or
            three channels.
        enlarge: In training, enlarge GT images that are smaller than the patch, by bilinear interpolation, as HAT does
            for ImageNet. Otherwise they are refused.
    """

    noise: Level = 0.0
    grey_noise: Annotated[float, Meta(ge=0, le=1)] = 0.0
    jpeg: Quality | None = None
    enlarge: bool = False

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: a value is out of bounds, or a range is turned round.
        """
        for name, value, low, high in (("noise", self.noise, 0, 255), ("jpeg", self.jpeg, 1, 100)):
            if value is None:
                continue
            first, last = value if isinstance(value, tuple) else (value, value)
            if not low <= first <= last <= high:
                raise ValueError(f"{name}: {value} is not in [{low}, {high}], or not a range from low to high")

    def enlarged(self, gt: Array, least: int) -> Array:
        """Return a GT image (H, W, C); with ``enlarge``, its sides have at least ``least`` pixels."""
        height, width = (max(edge, least) for edge in gt.shape[:2])
        if not self.enlarge or (height, width) == gt.shape[:2]:
            return gt
        return np.asarray(cv2.resize(gt, (width, height), interpolation=cv2.INTER_LINEAR)).reshape(height, width, -1)

    def whole(self, gt: Array, scale: int, rng: np.random.Generator) -> Array:
        """Return the LQ image of a whole GT image (H, W, C) whose sides are multiples of the scale."""
        return self._degraded(imresize(gt, 1 / scale) if scale > 1 else gt, rng)

    def patch(self, gt: Array, top: int, left: int, side: int, scale: int, rng: np.random.Generator) -> Array:
        """Return ``side`` x ``side`` pixels at (top, left) of the LQ image, without making all of it.

        Without noise and JPEG, the pixels equal those of the whole LQ image.
        """
        if scale == 1:
            return self._degraded(gt[top : top + side, left : left + side], rng)
        y0, x0 = max(top - _MARGIN, 0), max(left - _MARGIN, 0)
        area = gt[y0 * scale : (top + side + _MARGIN) * scale, x0 * scale : (left + side + _MARGIN) * scale]
        reduced = imresize(np.ascontiguousarray(area), 1 / scale)
        return self._degraded(reduced[top - y0 : top - y0 + side, left - x0 : left - x0 + side], rng)

    def _degraded(self, lq: Array, rng: np.random.Generator) -> Array:
        sigma = _drawn(self.noise, rng)
        if sigma:
            white = float(np.iinfo(lq.dtype).max)
            is_grey = self.grey_noise > 0 and rng.random() < self.grey_noise
            noise = rng.standard_normal((*lq.shape[:2], 1 if is_grey else lq.shape[2])) * (sigma * white / 255)
            lq = np.rint(np.clip(lq + noise, 0, white)).astype(lq.dtype)
        return lq if self.jpeg is None else _jpeg(lq, round(_drawn(self.jpeg, rng)))


def _drawn(value: float | tuple[float, float], rng: np.random.Generator) -> float:
    return float(rng.uniform(*value)) if isinstance(value, (tuple, list)) else float(value)


def _jpeg(image: Array, quality: int) -> Array:
    """Compress and decompress uint8 RGB (H, W, 3) or grey (H, W, 1).

    Raises:
        OptionError: the image has another depth or number of channels.
    """
    if image.dtype != np.uint8 or image.shape[2] not in (1, 3):
        bits = 8 * image.itemsize
        raise OptionError(
            f"lq.jpeg: JPEG has 8 bits and one or three channels, not {bits} bits, {image.shape[2]} channels"
        )
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))
    return np.ascontiguousarray(decoded.reshape(image.shape)[..., ::-1])
