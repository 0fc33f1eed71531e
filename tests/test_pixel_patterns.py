"""The data set PixelPatterns: details of one pixel, GT with larger pixels, reproducible samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from safmn.data import PixelPatterns, SampleKey, build_dataset, sample_rng
from safmn.data.drawing.pixels import pixel_pattern
from safmn.data.stages import of_size
from safmn.errors import OptionError


def generator(number: int) -> np.random.Generator:
    return sample_rng(3, SampleKey(0, number))


def patterns(phase: str = "train", **keys: Any) -> PixelPatterns:
    return PixelPatterns({"type": "PixelPatterns", "name": "p", "phase": phase, "scale": 3, "gt_size": 72, **keys})


@pytest.mark.parametrize("side", [1, 4, 23, 48])
def test_any_size_is_drawn_and_depends_only_on_the_generator(side: int) -> None:
    for number in range(40):
        image = pixel_pattern(generator(number), side)
        assert (image.shape, image.dtype) == ((side, side, 3), np.uint8)
        assert np.array_equal(image, pixel_pattern(generator(number), side))


def test_most_images_have_details_of_one_pixel_in_all_kinds_of_colours() -> None:
    images = [pixel_pattern(generator(number), 48).astype(int) for number in range(100)]
    single = [(image[:, 1:-1] != image[:, :-2]).any(2) & (image[:, 1:-1] != image[:, 2:]).any(2) for image in images]
    assert sum(mask.mean() > 0.02 for mask in single) > 60
    grey = [np.ptp(image, axis=2).max() == 0 for image in images]
    assert 10 < sum(grey) < 70
    assert sum(np.ptp(image, axis=2).max() == 255 for image in images) > 20


def test_gt_repeats_each_pixel() -> None:
    sample = patterns().sample(0, generator(5))
    assert (sample["lq"].shape, sample["gt"].shape) == ((3, 24, 24), (3, 72, 72))
    for row in range(3):
        for column in range(3):
            assert torch.equal(sample["gt"][:, row::3, column::3], sample["lq"])


def test_validation_images_are_fixed_and_training_follows_the_stage() -> None:
    fixed = build_dataset({"type": "PixelPatterns", "name": "v", "length": 3}, phase="val", scale=2)
    assert len(fixed) == 3
    assert torch.equal(fixed[1]["gt"], patterns("val", scale=2, length=9)[1]["gt"])
    assert not torch.equal(fixed[1]["gt"], fixed[2]["gt"])
    assert fixed[0]["lq"].shape == (3, 64, 64)
    with pytest.raises(IndexError):
        fixed[3]
    assert of_size(patterns(), 36).sample(0, generator(1))["lq"].shape == (3, 12, 12)
    with pytest.raises(OptionError, match="multiple of scale 3"):
        patterns(gt_size=50)
