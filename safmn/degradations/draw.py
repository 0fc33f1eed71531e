"""Draw a recipe. The parameters and their distributions are BasicSR's; the order of the draws is our own.

Every sample has its own generator. ``batch_pool`` uses a second generator, in the same state for all samples of a
batch, for everything that the published code draws once per batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np

from safmn.degradations.extra_steps import draw_extra
from safmn.degradations.options import BlurOptions, DegradationOptions, StageOptions
from safmn.degradations.recipe import (
    Blur,
    Codec,
    Compress,
    Crop,
    GaussianNoise,
    Geometry,
    Kernel,
    KernelKind,
    PoissonNoise,
    Recipe,
    Resize,
    ResizeMode,
    SensorNoise,
    Step,
)
from safmn.value_types import Interval

T = TypeVar("T")
Generator = np.random.Generator


def draw_recipe(options: DegradationOptions, rng: Generator, batch_rng: Generator | None = None) -> Recipe:
    """Draw a recipe.

    Args:
        options: see :func:`safmn.degradations.parse_options`.
        rng: the sample's generator, from :func:`safmn.data.sample_rng` with (seed, epoch, index).
        batch_rng: for ``mode: batch_pool``, a new generator in the same state for every sample of a batch.
    """
    shared = rng if batch_rng is None else batch_rng
    geometry = _draw_geometry(options, rng)
    kind = rng.random()
    if kind < options.bicubic_prob:
        steps: tuple[Step, ...] = (Resize("matlab_bicubic", 1.0, "lq"),)
    elif kind < options.bicubic_prob + options.lanczos_avif_prob:
        quality = _draw_quality(rng, options.lanczos_avif_range)
        steps = (Resize("lanczos", 1.0, "lq"), Compress("avif", quality))
    else:
        first, second = _draw_first(options, rng, shared), _draw_second(options, rng, shared)
        extra = draw_extra(options.extra, rng)  # last, so that the published draws do not change
        steps = (*extra["start"], *first, *extra["middle"], *second, *extra["end"])
    return Recipe(options.scale, options.degrade_sharpened, steps, geometry)


def _draw_geometry(options: DegradationOptions, rng: Generator) -> Geometry:
    down, across, patch_down, patch_across = rng.random(4).tolist()
    hflip, vflip, rot90 = (rng.random(3) < 0.5).tolist()
    return Geometry(
        hflip=options.hflip and hflip,
        vflip=options.rot and vflip,
        rot90=options.rot and rot90,
        crop=Crop(options.crop_size, down, across),
        patch=Crop(options.gt_size, patch_down, patch_across),
    )


def _draw_first(options: DegradationOptions, rng: Generator, shared: Generator) -> list[Step]:
    stage = options.first
    blur = Blur(_draw_kernel(stage.blur, rng))
    factor, mode = _draw_factor(stage, shared), _choose(shared, options.resize_modes)
    resize = [] if factor == 1 else [Resize(cast(ResizeMode, mode), factor)]
    start: list[Step] = [*resize, blur] if options.resize_first else [blur, *resize]
    return [*start, _draw_noise(options, stage, rng, shared), _draw_compression(options, stage, rng)]


def _draw_second(options: DegradationOptions, rng: Generator, shared: Generator) -> list[Step]:
    stage = options.second
    kernel = _draw_kernel(stage.blur, rng)
    steps: list[Step] = [Blur(kernel)] if shared.random() < stage.blur.prob else []
    factor, mode = _draw_factor(stage, shared), _choose(shared, options.resize_modes)
    steps += [Resize(cast(ResizeMode, mode), factor, "lq"), _draw_noise(options, stage, rng, shared)]
    compress = _draw_compression(options, stage, rng)
    sinc_first = shared.random() < 0.5
    end: list[Step] = [Resize(cast(ResizeMode, _choose(shared, options.final_resize_modes)), 1.0, "lq")]
    if rng.random() < options.final_sinc_prob:
        size = int(_choose(rng, stage.blur.sizes))
        end.append(Blur(Kernel("sinc", size, cutoff=float(rng.uniform(math.pi / 3, math.pi)))))
    return [*steps, *end, compress] if sinc_first else [*steps, compress, *end]


def _draw_kernel(options: BlurOptions, rng: Generator) -> Kernel:
    size = int(_choose(rng, options.sizes))
    if rng.random() < options.sinc_prob:
        lowest = math.pi / 3 if size < 13 else math.pi / 5  # small kernels cannot represent low frequencies
        return Kernel("sinc", size, cutoff=float(rng.uniform(lowest, math.pi)))
    kind = cast(KernelKind, _choose(rng, options.families, options.family_prob))
    sigma_x = _draw(rng, options.sigma)
    sigma_y, rotation = sigma_x, 0.0
    if kind.endswith("aniso"):
        sigma_y, rotation = _draw(rng, options.sigma), float(rng.uniform(-math.pi, math.pi))
    beta = 1.0
    if kind.startswith("generalized"):
        beta = _draw_beta(rng, options.beta_generalized)
    elif kind.startswith("plateau"):
        beta = _draw_beta(rng, options.beta_plateau)
    return Kernel(kind, size, sigma_x, sigma_y, rotation, beta)


def _draw_beta(rng: Generator, limits: Interval) -> float:
    return float(rng.uniform(limits[0], 1) if rng.random() < 0.5 else rng.uniform(1, limits[1]))


def _draw_factor(stage: StageOptions, rng: Generator) -> float:
    low, high = stage.resize_range
    direction = _choose(rng, ("up", "down", "keep"), stage.resize_prob)
    if direction == "keep":
        return 1.0
    return float(rng.uniform(1, high) if direction == "up" else rng.uniform(low, 1))


def _draw_noise(options: DegradationOptions, stage: StageOptions, rng: Generator, shared: Generator) -> Step:
    kind, sensor = shared.random(2).tolist()
    seed, grey = int(rng.integers(2**63)), bool(rng.random() < stage.grey_prob)
    if sensor < stage.sensor_prob:
        shot, read = (_draw_logarithmic(rng, r) for r in (options.sensor_shot_range, options.sensor_read_range))
        return SensorNoise(shot, read, seed)
    if kind < stage.gaussian_prob:
        return GaussianNoise(_draw(rng, stage.noise_range), grey, seed)
    return PoissonNoise(_draw(rng, stage.poisson_scale_range), grey, seed)


def _draw_compression(options: DegradationOptions, stage: StageOptions, rng: Generator) -> Compress:
    codec = cast(Codec, _choose(rng, options.codecs, options.codec_prob))
    return Compress(codec, _draw_quality(rng, stage.quality[codec]))


def _draw_quality(rng: Generator, limits: Interval) -> int:
    """Draw uniformly, as BasicSR does, then round: encoders take integers."""
    return round(_draw(rng, limits))


def _draw(rng: Generator, limits: Interval) -> float:
    return float(rng.uniform(*limits))


def _draw_logarithmic(rng: Generator, limits: Interval) -> float:
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def _choose(rng: Generator, items: Sequence[T], probabilities: Sequence[float] | None = None) -> T:
    """Choose one of ``items`` with a single uniform draw."""
    uniform = rng.random()
    if probabilities is None:
        return items[int(uniform * len(items))]
    total = 0.0
    for item, probability in zip(items, probabilities, strict=True):
        total += probability
        if uniform < total:
            return item
    return [item for item, probability in zip(items, probabilities, strict=True) if probability > 0][-1]
