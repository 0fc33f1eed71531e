"""Degradation keys of option files: Real-ESRGAN's, with their published defaults, and our own.

Real-ESRGAN's files have them in two places: resizing, noise and compression at the top level, blur in the section of
the training set. Our own keys are in the section ``degradation`` and are off by default.
:func:`safmn.degradations.parse_options` checks that the keys fit together.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from safmn.degradations.recipe import KernelKind, ResizeMode
from safmn.value_types import Interval, Positive

Mode: TypeAlias = Literal["per_sample", "batch_pool"]

FAMILIES: tuple[KernelKind, ...] = (
    "iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"
)  # fmt: skip
_FAMILY_PROB = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
PUBLISHED_MODES: tuple[ResizeMode, ...] = ("area", "bilinear", "bicubic")


class PublishedKeys(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Real-ESRGAN's top-level keys.

    Ranges are [low, high]; ``...2`` is the second stage.

    Attributes:
        gt_usm: Use the sharpened GT as the training target, and degrade it (stage 1).
        l1_gt_usm: All losses except the perceptual loss compare with the sharpened GT. If this key or one of the next
            two is given, training follows SAFMN's GAN stage: the GT itself is degraded, the first resize comes before
            the first blur, and ``nearest`` is added to the resize modes.
        percep_gt_usm: The perceptual loss compares with the sharpened GT.
        gan_gt_usm: The discriminator sees the sharpened GT.
        high_order_degradation: Must be true; other data sets read existing pairs.
        resize_prob, resize_prob2: Probabilities of enlarging, shrinking and keeping the size; must sum to 1.
        resize_range, resize_range2: Resize factor; the range must contain 1.
        gaussian_noise_prob, gaussian_noise_prob2: Probability of Gaussian noise; otherwise the noise is Poisson noise.
        noise_range, noise_range2: Standard deviation of Gaussian noise, in grey levels of 0 to 255.
        poisson_scale_range, poisson_scale_range2: Factor on Poisson noise.
        gray_noise_prob, gray_noise_prob2: Probability that the noise is the same in all three channels.
        jpeg_range, jpeg_range2: JPEG quality, 1 to 100.
        second_blur_prob: Probability of a blur in the second stage.
        gt_size: Side of the GT patch in pixels, a multiple of the scale.
        queue_size: Pairs in the pool of ``mode: batch_pool``.
    """

    gt_usm: bool = False
    l1_gt_usm: bool = False
    percep_gt_usm: bool = False
    gan_gt_usm: bool = False
    high_order_degradation: bool = True

    resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Interval = (0.15, 1.5)
    gaussian_noise_prob: float = 0.5
    noise_range: Interval = (1, 30)
    poisson_scale_range: Interval = (0.05, 3)
    gray_noise_prob: float = 0.4
    jpeg_range: Interval = (30, 95)

    second_blur_prob: float = 0.8
    resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize_range2: Interval = (0.3, 1.2)
    gaussian_noise_prob2: float = 0.5
    noise_range2: Interval = (1, 25)
    poisson_scale_range2: Interval = (0.05, 2.5)
    gray_noise_prob2: float = 0.4
    jpeg_range2: Interval = (10, 95)

    gt_size: Positive | None = None
    queue_size: Positive = 180


class DegradationKeys(PublishedKeys, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The top-level keys and our own keys of the section ``degradation``.

    Attributes:
        mode: ``per_sample``: every sample draws all of its parameters. ``batch_pool``: as published, the samples of a
            batch share resize factors and modes, the kinds of noise, the second blur and the order of the last steps,
            and batches are mixed in a pool of ``queue_size`` pairs.
        crop_size: Side of the GT crop that is degraded, in pixels.
        degrade_sharpened: Degrade the sharpened GT. null: follow ``gt_usm``.
        resize_first: Resize before the first blur. null: only in the GAN stage (see ``l1_gt_usm``).
        resize_modes: Resize modes, equally likely. null: the published ones (see ``l1_gt_usm``).
        final_resize_modes: Modes of the final resize to the LQ size, equally likely.
        codec_list: Codecs: ``jpeg``, ``webp``, ``avif``, or BasicSR's ``diffjpeg``.
        codec_prob: Probability of each codec in ``codec_list``; must sum to 1.
        webp_range: WebP quality, 1 to 100.
        avif_range: AVIF quality, 1 to 100.
        sensor_noise_prob: Probability of signal-dependent camera sensor noise in the first stage; its variance is
            ``shot * x + read**2``.
        sensor_shot_range: Range of ``shot``, drawn log-uniformly.
        sensor_read_range: Range of ``read``, drawn log-uniformly.
        bicubic_prob: Probability that a sample is only shrunk, with MATLAB's bicubic ``imresize``.
        lanczos_avif_prob: Probability that a sample is shrunk with Lanczos and compressed with AVIF, as for light
            SAFMN++.
        extra: Additional steps. Each has a ``type`` and its arguments, ``prob``, its probability (default 1), and
            ``place``: ``start``, ``middle`` (before the second stage) or ``end`` (on the LQ image). Built in:
            ``MotionBlur``.
        lanczos_avif_range: AVIF quality for ``lanczos_avif_prob``; the default covers quantisers 31 to 63 of the AIS
            2024 challenge.
    """

    mode: Mode = "per_sample"
    crop_size: int = 400
    degrade_sharpened: bool | None = None
    resize_first: bool | None = None
    resize_modes: tuple[str, ...] | None = None
    final_resize_modes: tuple[str, ...] = PUBLISHED_MODES
    codec_list: tuple[str, ...] = ("jpeg",)
    codec_prob: tuple[float, ...] = (1.0,)
    webp_range: Interval = (30, 95)
    avif_range: Interval = (30, 95)
    sensor_noise_prob: float = 0.0
    sensor_shot_range: Interval = (1e-4, 1.2e-2)
    sensor_read_range: Interval = (1e-3, 2e-2)
    bicubic_prob: float = 0.0
    lanczos_avif_prob: float = 0.0
    lanczos_avif_range: Interval = (1, 51)
    extra: tuple[dict[str, Any], ...] = ()


class BlurKeys(Struct, frozen=True, kw_only=True):
    """Blur and cropping keys of the training set's section.

    Attributes:
        gt_size: Side of the GT patch in pixels, a multiple of the scale; can be given at the top level instead.
        use_hflip: Flip half of the images left to right.
        use_rot: Flip half of the images top to bottom, and transpose half of them.
        batch_size_per_gpu: Samples per micro-batch and process; see the loader's keys.
        blur_kernel_size, blur_kernel_size2: Largest kernel size; odd sizes from 7 up to it are drawn.
        kernel_list, kernel_list2: Families of blur kernels.
        kernel_prob, kernel_prob2: Probability of each family; must sum to 1.
        sinc_prob, sinc_prob2: Probability of a sinc kernel.
        blur_sigma, blur_sigma2: Standard deviation of the kernel in pixels.
        betag_range, betag_range2: Shape exponent of generalized Gaussian kernels; half of the draws are below 1.
        betap_range, betap_range2: Shape exponent of plateau kernels; half of the draws are below 1.
        final_sinc_prob: Probability of a sinc filter at the end.
    """

    gt_size: Positive | None = None
    use_hflip: bool = False
    use_rot: bool = False
    batch_size_per_gpu: Positive | None = None

    blur_kernel_size: int = 21
    kernel_list: tuple[str, ...] = FAMILIES
    kernel_prob: tuple[float, ...] = _FAMILY_PROB
    sinc_prob: float = 0.1
    blur_sigma: Interval = (0.2, 3)
    betag_range: Interval = (0.5, 4)
    betap_range: Interval = (1, 2)

    blur_kernel_size2: int = 21
    kernel_list2: tuple[str, ...] = FAMILIES
    kernel_prob2: tuple[float, ...] = _FAMILY_PROB
    sinc_prob2: float = 0.1
    blur_sigma2: Interval = (0.2, 1.5)
    betag_range2: Interval = (0.5, 4)
    betap_range2: Interval = (1, 2)

    final_sinc_prob: float = 0.8
