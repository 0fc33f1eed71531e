"""The keys of the degradation in option files: Real-ESRGAN's, with published defaults, and ours.

Real-ESRGAN's files hold them in two places: resizing, noise and compression at the top level, blur in the section of
the training set. What is new here stands in the section ``degradation`` and is off unless asked for. What goes
together is checked by :func:`safmn.degradations.parse_options`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

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
    """Real-ESRGAN's keys of the top level.

    Ranges are [low, high]; ``...2`` is the second stage; ``resize_prob`` is [up, down, keep].

    Attributes:
        gt_usm: stage 1 trains towards, and degrades, the sharpened GT.
        l1_gt_usm, percep_gt_usm, gan_gt_usm: which losses see the sharpened GT. One of them says that this is SAFMN's
            GAN training, which degrades the GT itself, resizes before the first blur and draws ``nearest`` too.
        high_order_degradation: true; false means pairs that exist, which other data sets read.
        noise_range: standard deviation in grey levels of 0..255.
        poisson_scale_range: factor on Poisson noise.
        jpeg_range: quality, 1 to 100.
        gt_size: side of the GT patch.
        queue_size: pairs in the pool of ``mode: batch_pool``.
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
    """Those and the keys of the section ``degradation``, which are ours.

    Attributes:
        mode: ``per_sample``: every sample draws everything for itself. ``batch_pool``: as published, a batch shares
            resize factors and modes, the kinds of noise, the second blur and the order at the end, and batches are
            mixed in a pool of ``queue_size`` pairs.
        crop_size: side of the GT crop that is degraded.
        degrade_sharpened: whether the sharpened GT is degraded. Default: see ``gt_usm`` and ``l1_gt_usm``.
        resize_first: resize before the first blur. Default: see ``l1_gt_usm``.
        resize_modes, final_resize_modes: drawn from, each alike; the latter for the way to the LQ size.
        codec_list, codec_prob: what compresses, and how often; ``diffjpeg`` is BasicSR's.
        webp_range, avif_range: quality.
        sensor_noise_prob: share of noise in the first stage that depends on the signal as in a camera's sensor,
            with variance ``shot * x + read**2``; both are drawn uniformly in the logarithm.
        bicubic_prob: share of samples that are only shrunk, by MATLAB's bicubic ``imresize``.
        lanczos_avif_prob: share of samples that are shrunk by Lanczos and compressed by AVIF, as for light SAFMN++.
        lanczos_avif_range: their AVIF quality; the default covers the quantiser's 31..63 of the AIS 2024 challenge.
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


class BlurKeys(Struct, frozen=True, kw_only=True):
    """Keys of the training set's section.

    Attributes:
        blur_kernel_size: the largest kernel; odd sizes from 7 on are drawn.
        kernel_list, kernel_prob: families and how often each is drawn.
        sinc_prob: share of sinc kernels; ``final_sinc_prob`` is that of samples with a sinc filter at the end.
        blur_sigma: standard deviation in pixels.
        betag_range, betap_range: shape of generalized and plateau kernels; half of the draws lie below 1.
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
