"""Areas of one colour: the loss that preserves them, and the error of the shipped weights on them."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from safmn import weights
from safmn.archs import SAFMN
from safmn.imaging import read_rgb
from safmn.inference.upscaler import Upscaler
from safmn.kernels.cpu.compilation import compiler
from safmn.training.models.flat_areas import FlatAreas, draw_colours, endless, tiles
from safmn.weights import zoo

BACKEND = "native" if compiler() else "eager"
LEVELS = 2
# Buttons and headers of well-known user interfaces, spring green, and a coarse grid of all colours.
INTERFACE = ["3370ff", "165dff", "1677ff", "00ff7f", "00c000", "dc3545", "ff5722", "673ab7", "ffc107"]
COLOURS = np.array([list(bytes.fromhex(code)) for code in INTERFACE], np.uint8)
GRID = np.array(list(itertools.product((0, 64, 128, 191, 255), repeat=3)), np.uint8)


def small() -> SAFMN:
    torch.manual_seed(0)
    return SAFMN(dim=8, n_blocks=2, upscaling_factor=2).requires_grad_(False)


def test_a_tile_with_endless_borders_equals_the_middle_of_a_large_area() -> None:
    network, colours = small(), draw_colours(3, 1)
    with torch.no_grad():
        large, tile = network(tiles(colours, 128)), endless(network)(tiles(colours, 8))
    torch.testing.assert_close(large[:, :, 120:136, 120:136], tile, rtol=0, atol=1e-6)


def test_training_with_the_loss_reduces_the_error_in_large_areas() -> None:
    network = small().requires_grad_(True)
    flat_areas = FlatAreas(network)
    colours = draw_colours(16, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = flat_areas.loss(network, colours).item()
    for _ in range(30):
        optimizer.zero_grad()
        flat_areas.loss(network, colours).backward()
        optimizer.step()
    assert flat_areas.loss(network, colours).item() < 0.5 * before
    with torch.no_grad():
        middle = network(tiles(colours, 96))[:, :, 90:102, 90:102] - colours[:, :, None, None]
    assert float(middle.abs().mean()) == pytest.approx(flat_areas.loss(network, colours).item(), abs=1e-5)


def test_colours_depend_only_on_the_seeds() -> None:
    assert torch.equal(draw_colours(5, 1, 2), draw_colours(5, 1, 2))
    assert not torch.equal(draw_colours(5, 1, 2), draw_colours(5, 1, 3))
    many = draw_colours(500, 4)
    assert 0 <= float(many.min()) < float(many.max()) <= 1


@pytest.mark.parametrize("name", sorted(zoo.entries()))
def test_shipped_weights_preserve_a_colour_without_borders(name: str) -> None:
    network = endless(weights.load_network(name).eval())
    colours = torch.from_numpy(np.concatenate([COLOURS, GRID]).astype(np.float32)) / 255
    with torch.no_grad():
        off = (network(tiles(colours, 8)).clamp(0, 1) - colours[:, :, None, None]).abs().amax((1, 2, 3)) * 255
    assert float(off.max()) < LEVELS + 0.5, (name, int(off.argmax()))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(zoo.entries()))
@pytest.mark.parametrize("side", [24, 48, 80])
def test_shipped_weights_preserve_a_colour_on_white(name: str, side: int) -> None:
    allowed = 3 if (name, side) == ("safmn-x4-real", 24) else LEVELS
    upscaler = Upscaler(name, backend=BACKEND)
    first, last = (upscaler.scale * edge for edge in (16 + 8, 16 + side - 8))
    for colours in np.array_split(np.concatenate([COLOURS, GRID[::4]]), 5):
        images = np.full((len(colours), side + 32, side + 32, 3), 255, np.uint8)
        images[:, 16:-16, 16:-16] = colours[:, None, None]
        off = upscaler(images)[:, first:last, first:last].astype(int) - colours[:, None, None]
        assert np.abs(off).max() <= allowed, (name, colours[np.abs(off).max((1, 2, 3)).argmax()])


def in_flat_areas(image: np.ndarray, reach: int = 8) -> np.ndarray:
    """Return which pixels have only their own colour, and no image border, within ``reach`` pixels: bool (H, W)."""
    kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
    flat = (cv2.dilate(image, kernel) == cv2.erode(image, kernel)).all(2)
    inside = np.zeros_like(flat)
    inside[reach:-reach, reach:-reach] = flat[reach:-reach, reach:-reach]
    return inside


@pytest.mark.parametrize("name", sorted(zoo.entries()))
@pytest.mark.parametrize("case", ["webpage", "green_chart", "green_circle"])
def test_shipped_weights_preserve_the_flat_areas_of_an_image(cases_dir: Path, name: str, case: str) -> None:
    image = read_rgb(cases_dir / f"{case}.png")
    upscaler = Upscaler(name, backend=BACKEND)
    larger, flat = (
        (each.repeat(upscaler.scale, 0).repeat(upscaler.scale, 1)) for each in (image, in_flat_areas(image))
    )
    off = np.abs(upscaler(image).astype(int) - larger)[flat]
    assert len(off) > 1000
    assert off.max() <= LEVELS, (name, case)
