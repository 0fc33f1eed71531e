"""Drawing recipes, and storing them as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safmn.data import SampleKey, sample_rng
from safmn.degradations import DegradationOptions, Recipe, draw_recipe, from_json, parse_options, read_recipe, to_json
from safmn.degradations.recipe import (
    Blur,
    Compress,
    GaussianNoise,
    Kernel,
    PoissonNoise,
    Resize,
    SensorNoise,
)
from safmn.errors import DataError

EVERYTHING: dict[str, Any] = {
    "gt_usm": True,
    "resize_modes": ["area", "bilinear", "bicubic", "nearest", "lanczos"],
    "codec_list": ["jpeg", "webp", "diffjpeg"],
    "codec_prob": [0.5, 0.25, 0.25],
    "sensor_noise_prob": 0.2,
    "bicubic_prob": 0.1,
    "lanczos_avif_prob": 0.1,
}


TO_LQ = {"op": "resize", "mode": "area", "factor": 1, "of": "lq"}
GEOMETRY: dict[str, Any] = {
    "hflip": False,
    "vflip": False,
    "rot90": False,
    "crop": {"size": 400, "down": 0, "across": 0},
    "patch": {"size": 128, "down": 0, "across": 0},
}


def options_of(degradation: dict[str, Any] | None = None, **dataset: Any) -> DegradationOptions:
    section = {"use_hflip": True, "use_rot": True} | dataset
    return parse_options({"gt_size": 128} | (degradation or {}), section, scale=4)


def draws(options: DegradationOptions, count: int) -> list[Recipe]:
    """Draw the recipes of the first samples in epoch 0 with seed 0."""
    return [draw_recipe(options, sample_rng(0, SampleKey(0, index))) for index in range(count)]


@pytest.fixture(scope="module")
def published() -> list[Recipe]:
    return draws(options_of(), 3000)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_recipe_read_from_json_is_identical(seed: int, epoch: int, index: int) -> None:
    recipe = draw_recipe(options_of(EVERYTHING), sample_rng(seed, SampleKey(epoch, index)))
    text = to_json(recipe)
    assert from_json(text) == recipe
    assert to_json(from_json(text)) == text


def test_a_recipe_is_plain_data_and_frozen(published: list[Recipe]) -> None:
    steps = json.loads(to_json(published[0]))["steps"]
    assert steps[0]["op"] == "blur"
    assert set(steps[0]["kernel"]) >= {"kind", "size"}
    with pytest.raises(AttributeError):
        published[0].scale = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("scale", 0), r"Expected `int` >= 1 - at `\$.scale`"),
        (("steps", [{"op": "melt"}]), "melt"),
        (("steps", [{"op": "compress", "codec": "jpeg", "quality": 0}]), "quality"),
        (("steps", [{"op": "blur", "kernel": {"kind": "iso", "size": 8}}]), "must be odd"),
        (("steps", [{"op": "resize", "mode": "area", "factor": 0}]), "factor"),
        (("steps", [{"op": "resize", "mode": "area", "factor": 1e300}]), r"<= 8.*steps\[0\].factor"),
        (("steps", [{"op": "resize", "mode": "area", "factor": 3}] * 2 + [TO_LQ]), "enlarge the image 9 times"),
        (("steps", [{"op": "resize", "mode": "area", "factor": 1}]), "LQ size"),
        (("steps", []), "LQ size"),
        (("steps", [{"op": "gaussian_noise", "sigma": 1e308, "grey": True, "seed": 1}, TO_LQ]), "<= 255.*sigma"),
        (("steps", [{"op": "gaussian_noise", "sigma": 1, "grey": True, "seed": 2**63}, TO_LQ]), "seed"),
        (("steps", [{"op": "poisson_noise", "scale": 1e308, "grey": True, "seed": 1}, TO_LQ]), "<= 100.*scale"),
        (("steps", [{"op": "sensor_noise", "shot": 1e308, "read": 0, "seed": 1}, TO_LQ]), "<= 1.*shot"),
        (("steps", [{"op": "sensor_noise", "shot": 0, "read": 1e308, "seed": 1}, TO_LQ]), "<= 1.*read"),
        (("steps", [{"op": "blur", "kernel": {"kind": "sinc", "size": 7, "cutoff": 1e-200}}, TO_LQ]), "cutoff"),
        (("geometry", GEOMETRY | {"crop": {"size": 10**9, "down": 0, "across": 0}}), "<= 8192.*crop.size"),
        (("geometry", GEOMETRY | {"patch": {"size": 401, "down": 0, "across": 0}}), "401 pixels does not fit"),
        (("scale", 129), "scale 129"),
        (("colour", 1), "colour"),
        (("format", 2), "format"),
    ],
)
def test_a_wrong_recipe_is_rejected(
    change: tuple[str, Any], message: str, published: list[Recipe], tmp_path: Path
) -> None:
    data = json.loads(to_json(published[0])) | dict([change])
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=message) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


def test_a_draw_depends_only_on_its_key() -> None:
    options = options_of()
    one = draw_recipe(options, sample_rng(7, SampleKey(2, 31)))
    draw_recipe(options, sample_rng(7, SampleKey(2, 32)))
    assert draw_recipe(options, sample_rng(7, SampleKey(2, 31))) == one
    others = [sample_rng(7, SampleKey(2, 32)), sample_rng(7, SampleKey(3, 31)), sample_rng(8, SampleKey(2, 31))]
    assert all(draw_recipe(options, rng) != one for rng in others)


def test_recipes_of_the_widest_options_are_valid() -> None:
    widest = {"resize_range": [0.01, 8], "resize_prob": [1, 0, 0], "noise_range": [0, 255], "jpeg_range": [1, 100]}
    widest |= {"poisson_scale_range": [0, 100], "sensor_shot_range": [1e-9, 1], "sensor_read_range": [1e-9, 1]}
    widest |= {"resize_range2": [0.01, 8], "resize_prob2": [1, 0, 0], "sensor_noise_prob": 0.5, "crop_size": 8192}
    limits = {"blur_sigma": [1e-200, 1e200], "betag_range": [1e-200, 1e200], "blur_kernel_size": 61}
    for recipe in draws(options_of(EVERYTHING | widest, **limits), 100):
        assert from_json(to_json(recipe)) == recipe


def shape_of(recipe: Recipe) -> list[str]:
    """Return the names of the steps, with ``Noise`` for both kinds of noise."""
    return [type(step).__name__.replace("Gaussian", "").replace("Poisson", "") for step in recipe.steps]


def test_steps_have_the_published_order(published: list[Recipe]) -> None:
    for recipe in published[:300]:
        names = shape_of(recipe)
        first = names[: names.index("Compress") + 1]
        assert first in (["Blur", "Resize", "Noise", "Compress"], ["Blur", "Noise", "Compress"])
        rest = names[len(first) :]
        rest = rest[1:] if rest[0] == "Blur" else rest
        ends = [["Resize", "Blur", "Compress"], ["Resize", "Compress"], ["Compress", "Resize", "Blur"]]
        assert rest[:2] == ["Resize", "Noise"]
        assert rest[2:] in [*ends, ["Compress", "Resize"]]
    gan = draws(options_of({"l1_gt_usm": True}), 300)
    assert all(shape_of(recipe)[:2] in (["Resize", "Blur"], ["Blur", "Noise"]) for recipe in gan)
    assert {step.mode for recipe in gan for step in recipe.steps if isinstance(step, Resize)} >= {"nearest"}


def test_values_are_in_their_ranges(published: list[Recipe]) -> None:
    for recipe in published:
        qualities = [step.quality for step in recipe.steps if isinstance(step, Compress)]
        assert 30 <= qualities[0] <= 95
        assert 10 <= qualities[1] <= 95
        noises = [step for step in recipe.steps if isinstance(step, (GaussianNoise, PoissonNoise))]
        for noise, sigma, scale in zip(noises, (30, 25), (3, 2.5), strict=True):
            assert 0.05 <= getattr(noise, "scale", 1) <= scale
            assert 1 <= getattr(noise, "sigma", 1) <= sigma
        resizes = [step for step in recipe.steps if isinstance(step, Resize)]
        assert (resizes[-1].of, resizes[-1].factor) == ("lq", 1)
        assert all(0.15 <= step.factor <= 1.5 for step in resizes)
        for step in recipe.steps:
            if isinstance(step, Blur):
                kernel = step.kernel
                assert kernel.size in range(7, 22, 2)
                assert math.pi / 5 <= kernel.cutoff <= math.pi
                assert max(kernel.sigma_x, kernel.sigma_y) <= 3


def near(count: int, total: int, probability: float) -> bool:
    """Return whether a count is within four standard deviations of its expectation."""
    return abs(count - total * probability) <= 4 * math.sqrt(total * probability * (1 - probability)) + 1e-9


def test_choices_have_the_published_frequencies(published: list[Recipe]) -> None:
    count = len(published)
    first = Counter(recipe.steps[0].kernel.kind for recipe in published if isinstance(recipe.steps[0], Blur))
    families = {"iso": 0.45, "aniso": 0.25, "generalized_iso": 0.12, "plateau_aniso": 0.03}
    assert near(first["sinc"], count, 0.1)
    assert all(near(first[kind], count, 0.9 * probability) for kind, probability in families.items())
    factors = [next((s.factor for s in r.steps[:2] if isinstance(s, Resize)), 1.0) for r in published]
    assert near(sum(factor > 1 for factor in factors), count, 0.2)
    assert near(sum(factor < 1 for factor in factors), count, 0.7)
    second_blur = [shape_of(r)[shape_of(r).index("Compress") + 1] == "Blur" for r in published]
    assert near(sum(second_blur), count, 0.8)
    noises = [next(s for s in r.steps if isinstance(s, (GaussianNoise, PoissonNoise))) for r in published]
    assert near(sum(isinstance(noise, GaussianNoise) for noise in noises), count, 0.5)
    assert near(sum(noise.grey for noise in noises), count, 0.4)
    assert near(sum(isinstance(r.steps[-1], Compress) for r in published), count, 0.5)
    finals = [r.steps[-1] if not isinstance(r.steps[-1], Compress) else r.steps[-2] for r in published]
    assert near(sum(isinstance(step, Blur) for step in finals), count, 0.8)
    assert near(sum(recipe.geometry.hflip for recipe in published), count, 0.5)
    crops = np.array([[r.geometry.crop.down, r.geometry.patch.across] for r in published])
    assert np.abs(crops.mean(axis=0) - 0.5).max() < 0.03
    assert np.unique([step.seed for r in published for step in r.steps if hasattr(step, "seed")]).size == 2 * count


def test_our_own_degradations_are_off_by_default(published: list[Recipe]) -> None:
    assert {s.codec for r in published for s in r.steps if isinstance(s, Compress)} == {"jpeg"}
    assert not any(isinstance(s, SensorNoise) for r in published for s in r.steps)
    every = draws(options_of(EVERYTHING), 1000)
    assert {s.codec for r in every for s in r.steps if isinstance(s, Compress)} == {"jpeg", "webp", "diffjpeg", "avif"}
    assert near(sum(any(isinstance(s, SensorNoise) for s in r.steps) for r in every), 1000, 0.8 * 0.2)
    bicubic = [r for r in every if r.steps == (Resize("matlab_bicubic", 1.0, "lq"),)]
    light = [r for r in every if isinstance(r.steps[0], Resize) and r.steps[0].mode == "lanczos" and len(r.steps) == 2]
    assert near(len(bicubic), 1000, 0.1)
    assert near(len(light), 1000, 0.1)
    assert all(isinstance(r.steps[1], Compress) and r.steps[1].codec == "avif" for r in light)


def test_flips_can_be_turned_off() -> None:
    for recipe in draws(options_of(use_hflip=False, use_rot=False), 50):
        geometry = recipe.geometry
        assert (geometry.hflip, geometry.vflip, geometry.rot90) == (False, False, False)


def test_a_batch_shares_what_the_published_code_draws_per_batch() -> None:
    options = options_of({"mode": "batch_pool"})

    def batch_rng() -> np.random.Generator:
        return np.random.Generator(np.random.Philox(99))

    batch = [draw_recipe(options, sample_rng(0, SampleKey(0, index)), batch_rng()) for index in range(16)]

    def shared(recipe: Recipe) -> list[Any]:
        resizes = [(step.mode, step.factor) for step in recipe.steps if isinstance(step, Resize)]
        kinds = [name for name in (type(s).__name__ for s in recipe.steps) if name.endswith("Noise")]
        return [resizes, kinds, isinstance(recipe.steps[-1], Compress)]

    assert all(shared(recipe) == shared(batch[0]) for recipe in batch)
    kernels = {step.kernel for recipe in batch for step in recipe.steps[:1] if isinstance(step, Blur)}
    assert len(kernels) == 16
    assert all(isinstance(kernel, Kernel) for kernel in kernels)
    assert len({step.quality for recipe in batch for step in recipe.steps if isinstance(step, Compress)}) > 8
