"""Frames of films: what did not change is not computed again, and the result is the same to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from repeater import repeater
from skimage import data

from safmn.archs import SAFMN
from safmn.inference.guard import Finding
from safmn.inference.unchanged import Area, Frames, areas_to_compute, changed_blocks
from safmn.inference.upscaler import Upscaler
from safmn.kernels.cpu import support

Array = np.ndarray[Any, np.dtype[Any]]


def screen(height: int, width: int) -> Array:
    """Return a large picture with detail everywhere, uint8 (height, width, 3)."""
    photo = np.concatenate([data.astronaut(), data.astronaut()[:, ::-1]], axis=1)
    return photo[:height, :width].copy()


@pytest.fixture(scope="module")
def native() -> Upscaler:
    """A small network (halo 18) with random weights on the native kernels."""
    if support.missing(torch.device("cpu")):
        pytest.skip("the native kernels need a compiler")
    torch.manual_seed(0)
    return Upscaler(SAFMN(dim=36, n_blocks=1, upscaling_factor=2).eval(), device="cpu", backend="native", guard=False)


def changed(frame: Array, *places: tuple[int, int, int, int]) -> Array:
    """Return a copy in which the colours of some areas (top, bottom, left, right) are inverted."""
    copy = frame.copy()
    for top, bottom, left, right in places:
        copy[top:bottom, left:right] = 255 - copy[top:bottom, left:right]
    return copy


PLACES = {
    "nothing": [],
    "one pixel": [(101, 102, 203, 204)],
    "a corner": [(0, 5, 0, 9)],
    "the other corner": [(-3, None, -7, None)],
    "two far apart": [(10, 14, 20, 24), (150, 160, 300, 320)],
    "two close together": [(80, 84, 100, 110), (84, 90, 150, 160)],
    "a line along the edge": [(0, 1, 0, 390)],
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("size", [(200, 392), (187, 389)])
def test_the_result_is_that_of_the_whole_frame_to_the_bit(native: Upscaler, where: str, size: tuple[int, int]) -> None:
    frames = Frames(native, lambda finding: None)
    first = screen(*size)
    second = changed(first, *PLACES[where])
    assert np.array_equal(frames(first), native(first))
    result = frames(second)
    assert np.array_equal(result, native(second))
    assert frames.pixels == 2 * first.shape[0] * first.shape[1]
    assert frames.computed < 1.65 * first.shape[0] * first.shape[1]
    third = changed(second, (40, 44, 300, 308))  # starts from a result that is made of parts
    assert np.array_equal(frames(third), native(third))


def test_deep_frames_and_many_random_changes(native: Upscaler) -> None:
    rng = np.random.default_rng(0)
    frames = Frames(native, lambda finding: None)
    frame = screen(160, 296).astype(np.uint16) * 257
    for _ in range(5):
        assert np.array_equal(frames(frame), native(frame))
        top, left = (int(rng.integers(0, side - 8)) for side in frame.shape[:2])
        frame = changed(frame, (top, top + 8, left, left + 8))
    assert frames.unchanged > 0.3


def test_a_frame_that_changes_everywhere_is_computed_whole(native: Upscaler) -> None:
    frames = Frames(native, lambda finding: None)
    first = screen(96, 128)
    frames(first)
    assert np.array_equal(frames(255 - first), native(255 - first))
    assert frames.unchanged == 0
    smaller = first[:88].copy()
    assert np.array_equal(frames(smaller), native(smaller))


class _Fake:
    """Counts calls; enlarges by repeating, and finds garbage where a pixel is 1."""

    scale = 2

    def __init__(self, reach: tuple[int, int] | None) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.reach = reach

    def __call__(self, image: Array, *, progress: Any = None, report: Callable[[Finding], None] | None = None) -> Array:
        self.calls.append(image.shape[:2])
        if (image == 1).any() and report is not None:
            report(Finding((1,), 1, "fake", True))
        return image.repeat(2, axis=0).repeat(2, axis=1)

    def exact_reach(self, height: int, width: int) -> tuple[int, int] | None:
        return self.reach


def test_what_the_guard_finds_is_told_for_every_frame_and_prevents_parts() -> None:
    fake, found = _Fake((8, 8)), []
    frames = Frames(fake, found.append)
    frame = np.full((64, 96, 3), 9, np.uint8)
    frames(frame)
    with_garbage = frame.copy()
    with_garbage[4, 4] = 1
    assert np.array_equal(frames(with_garbage)[::2, ::2], with_garbage)
    assert fake.calls[-1] == (64, 96)  # the part had a finding, so the whole frame was computed
    assert len(found) == 1
    frames(with_garbage.copy())
    assert len(found) == 2  # told again, although nothing was computed
    assert len(fake.calls) == 3
    frames(changed(with_garbage, (60, 64, 90, 96)))
    assert fake.calls[-1] == (64, 96)


def test_where_parts_are_not_exact_only_equal_frames_are_reused() -> None:
    fake = _Fake(None)
    frames = Frames(fake, lambda finding: None)
    frame = np.zeros((64, 96, 3), np.uint8)
    for each in (frame, frame.copy(), changed(frame, (0, 1, 0, 1))):
        frames(each)
    assert fake.calls == [(64, 96), (64, 96)]
    parts = []
    assert frames(changed(frame, (0, 1, 0, 1)), progress=parts.append) is not None
    assert parts == [1.0]


def test_other_back_ends_and_ensembles_have_no_exact_parts(native: Upscaler) -> None:
    assert native.exact_reach(100, 100) == (24, 8)
    assert Upscaler(repeater(), device="cpu", backend="eager").exact_reach(64, 64) is None
    ensemble = Upscaler(native.network, device="cpu", backend="native", self_ensemble=True)
    assert ensemble.exact_reach(64, 64) is None
    cut = Upscaler(native.network, device="cpu", backend="native", tile=32)
    assert cut.exact_reach(64, 64) is None


def test_the_blocks_that_changed() -> None:
    before = np.zeros((20, 30, 3), np.uint8)
    after = before.copy()
    after[7, 8, 2] = after[19, 29, 0] = 1
    expected = np.zeros((3, 4), bool)
    expected[0, 1] = expected[2, 3] = True
    assert np.array_equal(changed_blocks(before, after, 8), expected)


def test_areas_around_changes() -> None:
    blocks = np.zeros((20, 30), bool)
    blocks[10, 5] = blocks[10, 25] = True
    areas = areas_to_compute(blocks, 8, 8, (157, 240))
    assert sorted(areas) == [Area(64, 104, 24, 64), Area(64, 104, 184, 224)]
    blocks[14, 27] = True  # its area touches that of the second change
    assert Area(64, 136, 184, 240) in areas_to_compute(blocks, 8, 8, (157, 240))
