"""Applying recipes: independence of the number of threads, extra steps, and the geometry of training pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import torch

from safmn.data import SampleKey, sample_rng
from safmn.degradations import Recipe, apply_recipe, draw_recipe, from_json, make_pair, parse_options, to_json
from safmn.degradations.apply import cut_crop, stages
from safmn.degradations.extra_steps import MotionBlur
from safmn.degradations.operations import sharpen
from safmn.degradations.recipe import Crop, Extra, Resize
from safmn.errors import DataError, OptionError
from safmn.imaging import imresize, list_images, read_rgb


@pytest.fixture(scope="module")
def photo(photos_dir: Path) -> np.ndarray:
    """Return a whole photograph, uint8."""
    return read_rgb(list_images(photos_dir / "val")[1])


def draw(index: int, *, scale: int = 4, gt_size: int = 120, **degradation: Any) -> Recipe:
    """Draw the recipe of sample ``index`` in epoch 0 with seed 0."""
    keys = {"gt_usm": True, "gt_size": gt_size, **degradation}
    options = parse_options(keys, {"use_hflip": True, "use_rot": True}, scale=scale)
    return draw_recipe(options, sample_rng(0, SampleKey(0, index)))


def as_float(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / np.float32(255)


def test_the_number_of_threads_does_not_change_the_result(photo: np.ndarray) -> None:
    """Loader workers have one thread, the main process has many."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            cv2.setNumThreads(count)
            results.append([make_pair(draw(index), photo, sharpened=True) for index in range(25)])
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    for one, other in zip(*results, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_lq_has_the_right_size_and_is_rounded_to_8_bits(scale: int, photo: np.ndarray) -> None:
    for index, (height, width) in enumerate([(240, 320), (97, 61), (16, 40), (5, 5)]):
        lq = apply_recipe(draw(index, scale=scale), as_float(photo[:height, :width]))
        assert lq.shape == (height // scale, width // scale, 3)
        assert lq.dtype == np.float32
        assert np.array_equal(lq, np.rint(lq * 255).astype(np.float32) / np.float32(255))


def test_applying_does_not_change_the_image(photo: np.ndarray) -> None:
    gt = as_float(photo[:128, :128])
    before = gt.copy()
    for index in range(10):
        apply_recipe(draw(index, extra=[{"type": "MotionBlur"}]), gt)
    assert np.array_equal(gt, before)


def test_the_last_stage_is_the_lq_before_rounding(photo: np.ndarray) -> None:
    gt, recipe = as_float(photo[:128, :128]), draw(3)
    seen = list(stages(recipe, gt))
    assert [step for step, _ in seen] == list(recipe.steps)
    assert np.array_equal(np.rint(np.clip(seen[-1][1], 0, 1) * 255), np.rint(apply_recipe(recipe, gt) * 255))


def test_pure_bicubic_equals_imresize(photo: np.ndarray) -> None:
    lq = apply_recipe(draw(0, bicubic_prob=1, gt_usm=False), as_float(photo[:128, :160]))
    assert np.array_equal(np.rint(lq * 255), imresize(photo[:128, :160], 1 / 4))


def test_the_degradation_of_light_safmnpp_is_lanczos_and_avif(photo: np.ndarray) -> None:
    if not cv2.haveImageWriter(".avif"):
        pytest.skip("this OpenCV cannot write AVIF")
    gt = as_float(photo[:256, :256])
    recipe = draw(0, lanczos_avif_prob=1, lanczos_avif_range=[50, 50], gt_usm=False)
    shrunk = apply_recipe(msgspec.structs.replace(recipe, steps=recipe.steps[:1]), gt)
    lq = apply_recipe(recipe, gt)
    assert 0 < np.abs(lq - shrunk).mean() * 255 < 8
    area = cv2.resize(gt, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk - area).mean() * 255 < 6


def test_the_patch_has_the_same_position_in_lq_and_gt(photo: np.ndarray) -> None:
    for index in range(8):
        recipe = draw(index)
        geometry = recipe.geometry
        crop = as_float(cut_crop(geometry, photo))
        pair = make_pair(recipe, photo, sharpened=True)
        lq = apply_recipe(recipe, crop)
        top, left = int(geometry.patch.down * 71), int(geometry.patch.across * 71)  # 100 - 30 + 1 positions
        assert np.array_equal(pair.lq, lq[top : top + 30, left : left + 30])
        assert np.array_equal(pair.gt, crop[4 * top : 4 * top + 120, 4 * left : 4 * left + 120])
        assert pair.gt_usm is not None
        assert np.array_equal(pair.gt_usm, sharpen(crop)[4 * top : 4 * top + 120, 4 * left : 4 * left + 120])


def test_a_sharpened_patch_equals_that_of_the_sharpened_crop(photo: np.ndarray) -> None:
    """If the GT itself is degraded, only the patch is sharpened, but its surroundings influence the result."""
    for index in range(8):
        recipe = draw(index, gt_usm=False, l1_gt_usm=True)
        assert not recipe.sharpen
        pair = make_pair(recipe, photo, sharpened=True)
        whole = sharpen(as_float(cut_crop(recipe.geometry, photo)))
        patch = recipe.geometry.patch
        top, left = 4 * int(patch.down * 71), 4 * int(patch.across * 71)
        np.testing.assert_allclose(pair.gt_usm, whole[top : top + 120, left : left + 120], rtol=0, atol=1e-6)
        assert make_pair(recipe, photo, sharpened=False).gt_usm is None


def test_the_crop_is_flipped_transposed_and_padded_like_basicsrs(photo: np.ndarray) -> None:
    small = photo[:300, :350]
    geometry = msgspec.structs.replace(draw(0).geometry, hflip=True, vflip=False, rot90=True, crop=Crop(400, 0.9, 0.9))
    crop = cut_crop(geometry, small)
    turned = small[:, ::-1].transpose(1, 0, 2)
    assert crop.shape == (400, 400, 3)
    assert np.array_equal(crop[:350, :300], turned)
    assert np.array_equal(crop[350:], crop[299:349][::-1])
    assert np.array_equal(crop[:, 300:], crop[:, 199:299][:, ::-1])


def test_every_crop_position_can_be_drawn(photo: np.ndarray) -> None:
    tops = set()
    for down in np.linspace(0, 1, 200, endpoint=False).tolist():
        geometry = msgspec.structs.replace(
            draw(0).geometry, hflip=False, vflip=False, rot90=False, crop=Crop(400, down, 0.0)
        )
        crop = cut_crop(geometry, photo[:403, :400])
        tops.add(next(top for top in range(4) if np.array_equal(crop, photo[top : top + 400, :400])))
    assert tops == {0, 1, 2, 3}


def test_images_of_a_wrong_shape_are_rejected(photo: np.ndarray) -> None:
    recipe = draw(0)
    with pytest.raises(DataError, match="too small for scale 4"):
        apply_recipe(recipe, as_float(photo[:3, :40]))
    with pytest.raises(DataError, match=r"\(H, W, 3\) array"):
        apply_recipe(recipe, as_float(photo[..., 0]))


def test_a_resize_leaves_at_least_one_pixel(photo: np.ndarray) -> None:
    recipe = msgspec.structs.replace(draw(0), sharpen=False, steps=(Resize("bicubic", 0.15), Resize("area", 1.0, "lq")))
    assert apply_recipe(recipe, as_float(photo[:5, :30])).shape == (1, 7, 3)


def test_extra_steps_do_not_change_the_published_draws() -> None:
    plain, extra = (draw(index, extra=listed) for index, listed in ((4, []), (4, [{"type": "MotionBlur"}])))
    assert extra.steps[0] == Extra("MotionBlur", extra.steps[0].drawn)  # type: ignore[union-attr]
    assert extra.steps[1:] == plain.steps
    assert from_json(to_json(extra)) == extra


@pytest.mark.parametrize(("place", "index"), [("start", 0), ("end", -1)])
def test_extra_steps_have_the_given_place_and_probability(place: str, index: int, photo: np.ndarray) -> None:
    recipe = draw(1, extra=[{"type": "MotionBlur", "length": [9, 9], "place": place}])
    assert isinstance(recipe.steps[index], Extra)
    assert apply_recipe(recipe, as_float(photo[:128, :160])).shape == (32, 40, 3)
    never = draw(1, extra=[{"type": "MotionBlur", "prob": 0, "place": place}])
    assert not any(isinstance(step, Extra) for step in never.steps)


def test_motion_blur_turns_a_point_into_a_line() -> None:
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    across = MotionBlur.apply(point, {"length": 9.0, "angle": 0.0})
    assert across.sum() == pytest.approx(3, abs=1e-5)
    np.testing.assert_allclose(across[20, 16:25, 0], 1 / 9, atol=1e-6)
    assert not across[19].any()
    down = MotionBlur.apply(point, {"length": 9.0, "angle": np.pi / 2})
    np.testing.assert_allclose(down, across.transpose(1, 0, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prob": 0.5}, r"degradation\.extra\[0\]: the key 'type'"),
        ({"type": "MotionBlurr"}, r"extra\[0\].*degradation step.*MotionBlur"),
        ({"type": "MotionBlur", "len": [1, 2]}, r"extra\[0\]: MotionBlur cannot be built.*len"),
        ({"type": "MotionBlur", "length": [0, 2]}, r"extra\[0\]: length: \[0, 2\]"),
        ({"type": "MotionBlur", "prob": 2}, r"extra\[0\]\.prob"),
        ({"type": "MotionBlur", "place": "last"}, r"extra\[0\]\.place"),
    ],
)
def test_mistakes_in_extra_steps_name_the_entry(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        draw(0, extra=[entry])
