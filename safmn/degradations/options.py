"""Check the degradation keys of an option file and turn them into the options for drawing recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import cv2
import msgspec

from safmn.degradations.extra_steps import ListedStep, listed_steps
from safmn.degradations.keys import FAMILIES, PUBLISHED_MODES, BlurKeys, DegradationKeys, Mode
from safmn.degradations.recipe import (
    CODECS,
    LARGEST_CROP,
    LARGEST_FACTOR,
    LARGEST_POISSON,
    LARGEST_SIGMA,
    RESIZE_MODES,
)
from safmn.errors import OptionError, did_you_mean
from safmn.value_types import Interval

_GAN_KEYS = ("l1_gt_usm", "percep_gt_usm", "gan_gt_usm")
_SMALLEST_KERNEL = 7
_LARGEST_KERNEL = 61
_SUM_TOLERANCE = 1e-4  # for probabilities written with few digits


class BlurOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options for drawing the kernels of one stage; see :class:`BlurKeys`."""

    prob: float
    sizes: tuple[int, ...]
    families: tuple[str, ...]
    family_prob: tuple[float, ...]
    sinc_prob: float
    sigma: Interval
    beta_generalized: Interval
    beta_plateau: Interval


class StageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options for drawing one stage; see :class:`DegradationKeys`."""

    blur: BlurOptions
    resize_prob: tuple[float, float, float]
    resize_range: Interval
    gaussian_prob: float
    sensor_prob: float
    noise_range: Interval
    poisson_scale_range: Interval
    grey_prob: float
    quality: dict[str, Interval]


class DegradationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The checked options for drawing recipes. Made by :func:`parse_options`.

    Attributes:
        scale: GT size / LQ size.
        crop_size: side of the degraded crop in GT pixels, a multiple of ``scale``.
        gt_size: side of the patch that is kept in GT pixels, a multiple of ``scale``.
        needs_sharpened: whether a loss needs the sharpened GT.
    """

    scale: int
    crop_size: int
    gt_size: int
    hflip: bool
    rot: bool
    mode: Mode
    queue_size: int
    degrade_sharpened: bool
    needs_sharpened: bool
    resize_first: bool
    resize_modes: tuple[str, ...]
    final_resize_modes: tuple[str, ...]
    first: StageOptions
    second: StageOptions
    final_sinc_prob: float
    codecs: tuple[str, ...]
    codec_prob: tuple[float, ...]
    sensor_shot_range: Interval
    sensor_read_range: Interval
    bicubic_prob: float
    lanczos_avif_prob: float
    lanczos_avif_range: Interval
    extra: tuple[ListedStep, ...]


def parse_options(
    degradation: Mapping[str, Any], dataset: Mapping[str, Any], *, scale: int, where: str = "datasets.train"
) -> DegradationOptions:
    """Check the options and return those for drawing recipes.

    Args:
        degradation: Real-ESRGAN's top-level keys together with those of the section ``degradation``.
        dataset: the data set's section; keys that are not in :class:`BlurKeys` are ignored. If its phase is not
            ``train``, whole images are used and ``gt_size`` is ignored.
        scale: GT size / LQ size.
        where: the name of the data set's section in messages.

    Raises:
        OptionError: a key is wrong; the message names it and says what it must be.
    """
    if dataset.get("phase", "train") != "train":
        degradation, dataset = ({**section, "gt_size": scale} for section in (degradation, dataset))
    keys = _convert(degradation, DegradationKeys, "")
    blur_keys = {field.encode_name for field in msgspec.structs.fields(BlurKeys)}
    blur = _convert({key: value for key, value in dataset.items() if key in blur_keys}, BlurKeys, f"{where}.")
    _check_degradation(keys)
    _check_blur(blur, f"{where}.")
    gt_size = _check_sizes(keys, blur, scale)
    _check_pool(keys, blur)
    is_gan = any(key in degradation for key in _GAN_KEYS)
    modes = ("nearest",) if is_gan else ()
    return DegradationOptions(
        scale=scale,
        crop_size=keys.crop_size // scale * scale,
        gt_size=gt_size,
        hflip=blur.use_hflip,
        rot=blur.use_rot,
        mode=keys.mode,
        queue_size=keys.queue_size,
        degrade_sharpened=keys.gt_usm if keys.degrade_sharpened is None else keys.degrade_sharpened,
        needs_sharpened=keys.gt_usm or keys.l1_gt_usm or keys.percep_gt_usm or keys.gan_gt_usm,
        resize_first=is_gan if keys.resize_first is None else keys.resize_first,
        resize_modes=(*PUBLISHED_MODES, *modes) if keys.resize_modes is None else keys.resize_modes,
        final_resize_modes=keys.final_resize_modes,
        first=_stage(keys, blur, "", blur_prob=1.0, sensor_prob=keys.sensor_noise_prob),
        second=_stage(keys, blur, "2", blur_prob=keys.second_blur_prob, sensor_prob=0.0),
        final_sinc_prob=blur.final_sinc_prob,
        codecs=keys.codec_list,
        codec_prob=keys.codec_prob,
        sensor_shot_range=keys.sensor_shot_range,
        sensor_read_range=keys.sensor_read_range,
        bicubic_prob=keys.bicubic_prob,
        lanczos_avif_prob=keys.lanczos_avif_prob,
        lanczos_avif_range=keys.lanczos_avif_range,
        extra=listed_steps(keys.extra),
    )


def _stage(keys: DegradationKeys, blur: BlurKeys, suffix: str, *, blur_prob: float, sensor_prob: float) -> StageOptions:
    def key(name: str) -> Any:
        return getattr(keys, name + suffix)

    def blur_key(name: str) -> Any:
        return getattr(blur, name + suffix)

    jpeg = key("jpeg_range")
    return StageOptions(
        blur=BlurOptions(
            prob=blur_prob,
            sizes=tuple(range(_SMALLEST_KERNEL, blur_key("blur_kernel_size") + 1, 2)),
            families=blur_key("kernel_list"),
            family_prob=blur_key("kernel_prob"),
            sinc_prob=blur_key("sinc_prob"),
            sigma=blur_key("blur_sigma"),
            beta_generalized=blur_key("betag_range"),
            beta_plateau=blur_key("betap_range"),
        ),
        resize_prob=key("resize_prob"),
        resize_range=key("resize_range"),
        gaussian_prob=key("gaussian_noise_prob"),
        sensor_prob=sensor_prob,
        noise_range=key("noise_range"),
        poisson_scale_range=key("poisson_scale_range"),
        grey_prob=key("gray_noise_prob"),
        quality={"jpeg": jpeg, "diffjpeg": jpeg, "webp": keys.webp_range, "avif": keys.avif_range},
    )


Keys = TypeVar("Keys", bound=msgspec.Struct)


def _convert(section: Mapping[str, Any], kind: type[Keys], prefix: str) -> Keys:
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in section:
        if key not in known:
            raise OptionError(f"{prefix}{key}: no degradation option has this name.{did_you_mean(key, known)}")
    try:
        return msgspec.convert(dict(section), kind, strict=True)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        raise OptionError(f"{prefix}{where.rstrip('`')}: {message}") from error


def _require(condition: bool, key: str, message: str) -> None:
    if not condition:
        raise OptionError(f"{key}: {message}")


def _check_degradation(keys: DegradationKeys) -> None:
    _require(
        keys.high_order_degradation,
        "high_order_degradation",
        "must be true with RealESRGANDataset; for existing image pairs use the data set PairedImageDataset",
    )
    for suffix in ("", "2"):
        _check_distribution(keys, f"resize_prob{suffix}", 3)
        for name in ("gaussian_noise_prob", "gray_noise_prob"):
            _check_probability(keys, name + suffix)
        low, high = _check_range(keys, f"resize_range{suffix}", low=0, high=LARGEST_FACTOR, open_low=True)
        _require(low <= 1 <= high, f"resize_range{suffix}", f"[{low:g}, {high:g}] must contain 1")
        _check_range(keys, f"noise_range{suffix}", low=0, high=LARGEST_SIGMA)
        _check_range(keys, f"poisson_scale_range{suffix}", low=0, high=LARGEST_POISSON)
        _check_range(keys, f"jpeg_range{suffix}", low=1, high=100)
    _check_probability(keys, "second_blur_prob")
    _check_extras(keys)


def _check_extras(keys: DegradationKeys) -> None:
    for name in ("sensor_noise_prob", "bicubic_prob", "lanczos_avif_prob"):
        _check_probability(keys, name, "degradation.")
    share = keys.bicubic_prob + keys.lanczos_avif_prob
    _require(share <= 1, "degradation.lanczos_avif_prob", f"its sum with bicubic_prob is {share:g}, more than 1")
    for name in ("webp_range", "avif_range", "lanczos_avif_range"):
        _check_range(keys, name, "degradation.", low=1, high=100)
    for name in ("sensor_shot_range", "sensor_read_range"):
        _check_range(keys, name, "degradation.", low=0, high=1, open_low=True)
    _check_names(keys.codec_list, CODECS, "degradation.codec_list")
    _check_distribution(keys, "codec_prob", len(keys.codec_list), "degradation.", of="codec_list")
    for name in ("resize_modes", "final_resize_modes"):
        modes = getattr(keys, name)
        if modes is not None:
            _check_names(modes, RESIZE_MODES, f"degradation.{name}")
    if "avif" in keys.codec_list or keys.lanczos_avif_prob:
        key = "degradation." + ("codec_list" if "avif" in keys.codec_list else "lanczos_avif_prob")
        _require(
            cv2.haveImageWriter(".avif"), key, "this OpenCV cannot write AVIF; install opencv-python 4.12 or newer"
        )


def _check_blur(blur: BlurKeys, prefix: str) -> None:
    for suffix in ("", "2"):
        name = f"blur_kernel_size{suffix}"
        size = getattr(blur, name)
        odd = size % 2 == 1 and _SMALLEST_KERNEL <= size <= _LARGEST_KERNEL
        _require(odd, prefix + name, f"{size} must be odd, from {_SMALLEST_KERNEL} to {_LARGEST_KERNEL}")
        families = getattr(blur, f"kernel_list{suffix}")
        _check_names(families, FAMILIES, f"{prefix}kernel_list{suffix}")
        _check_distribution(blur, f"kernel_prob{suffix}", len(families), prefix, of=f"kernel_list{suffix}")
        _check_probability(blur, f"sinc_prob{suffix}", prefix)
        _check_range(blur, f"blur_sigma{suffix}", prefix, low=0, open_low=True)
        for name in (f"betag_range{suffix}", f"betap_range{suffix}"):
            low, high = _check_range(blur, name, prefix, low=0, open_low=True)
            _require(low <= 1 <= high, prefix + name, f"[{low:g}, {high:g}] must contain 1")
    _check_probability(blur, "final_sinc_prob", prefix)


def _check_sizes(keys: DegradationKeys, blur: BlurKeys, scale: int) -> int:
    """Check the sizes and return the side of the GT patch."""
    _require(scale >= 1, "scale", f"{scale} must be at least 1")
    _require(keys.crop_size >= scale, "degradation.crop_size", f"{keys.crop_size} must be at least scale, {scale}")
    largest = f"{keys.crop_size} must be at most {LARGEST_CROP}"
    _require(keys.crop_size <= LARGEST_CROP, "degradation.crop_size", largest)
    if keys.gt_size is not None and blur.gt_size is not None:
        same = keys.gt_size == blur.gt_size
        _require(same, "gt_size", f"{keys.gt_size} at the top level, {blur.gt_size} in datasets.train; give one value")
    gt_size = blur.gt_size if keys.gt_size is None else keys.gt_size
    if gt_size is None:
        raise OptionError("gt_size: missing; give the side of the GT patch in pixels, for example 256")
    _require(gt_size >= scale and gt_size % scale == 0, "gt_size", f"{gt_size} is not a multiple of scale, {scale}")
    lq, patch = keys.crop_size // scale, gt_size // scale
    _require(
        patch <= lq,
        "gt_size",
        f"{gt_size} needs LQ patches of {patch}x{patch}, but the degraded image is only {lq}x{lq} "
        f"(degradation.crop_size {keys.crop_size} / scale {scale}). Lower gt_size or raise crop_size",
    )
    smallest = int(lq * keys.resize_range2[0])
    _require(smallest >= 1, "resize_range2", f"{keys.resize_range2[0]:g} of {lq} LQ pixels leaves no pixel")
    smallest = int(keys.crop_size * keys.resize_range[0])
    _require(smallest >= 1, "resize_range", f"{keys.resize_range[0]:g} of {keys.crop_size} pixels leaves no pixel")
    return gt_size


def with_patch(options: DegradationOptions, gt_size: int) -> DegradationOptions:
    """Return the options with another side of the GT patch, at most that of the degraded crop."""
    _require(gt_size % options.scale == 0, "gt_size", f"{gt_size} is not a multiple of scale, {options.scale}")
    largest = options.crop_size
    _require(gt_size <= largest, "gt_size", f"{gt_size} is larger than the degraded image, {largest} pixels")
    return msgspec.structs.replace(options, gt_size=gt_size)


def _check_pool(keys: DegradationKeys, blur: BlurKeys) -> None:
    batch = blur.batch_size_per_gpu
    fits = keys.mode == "per_sample" or batch is None or keys.queue_size % batch == 0
    _require(fits, "queue_size", f"{keys.queue_size} must be a multiple of batch_size_per_gpu, {batch}")


def _check_probability(keys: msgspec.Struct, name: str, prefix: str = "") -> None:
    value = getattr(keys, name)
    _require(0 <= value <= 1, prefix + name, f"{value:g} is not a probability between 0 and 1")


def _check_distribution(keys: msgspec.Struct, name: str, length: int, prefix: str = "", *, of: str = "") -> None:
    values: Sequence[float] = getattr(keys, name)
    shown = [float(f"{value:g}") for value in values]
    _require(len(values) == length, prefix + name, f"{shown} has {len(values)} values, not {length} like {of}")
    _require(all(value >= 0 for value in values), prefix + name, f"{shown} has a negative probability")
    total = sum(values)
    _require(abs(total - 1) <= _SUM_TOLERANCE, prefix + name, f"{shown} sums to {total:g}, not to 1")


def _check_range(
    keys: msgspec.Struct,
    name: str,
    prefix: str = "",
    *,
    low: float,
    high: float = float("inf"),
    open_low: bool = False,
) -> Interval:
    first, last = getattr(keys, name)
    key = prefix + name
    _require(first <= last, key, f"[{first:g}, {last:g}] is not a range [low, high]")
    inside = (first > low if open_low else first >= low) and last <= high
    bound = f"above {low:g}" if open_low else f"at least {low:g}"
    bound += f" and at most {high:g}" if high != float("inf") else ""
    _require(inside, key, f"[{first:g}, {last:g}]: values must be {bound}")
    return first, last


def _check_names(names: Sequence[str], known: Sequence[str], key: str) -> None:
    _require(len(names) > 0, key, "is empty")
    for name in names:
        if name not in known:
            raise OptionError(f"{key}: {name!r} is unknown.{did_you_mean(name, known)} Known: {', '.join(known)}.")
