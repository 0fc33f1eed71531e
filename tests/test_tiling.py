"""Pieces equal the whole frame: strips, bands and stages, for every network that depends only on nearby pixels."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from safmn.archs import SAFMN, SAFMN_BCIE, SAFMNPP, LightSAFMNPP
from safmn.archs.stages import stages_of
from safmn.errors import DataError
from safmn.imaging import read_rgb
from safmn.inference import Upscaler, streaming, tiling
from safmn.inference.streaming import bytes_per_column, stream
from safmn.inference.tiling import TiledFrame, TileSize
from safmn.system.memory import PeakMemory

TOLERANCE = 1e-5


def lively(network: nn.Module, seed: int = 0) -> Any:
    """Give a network random weights whose features neither vanish nor explode, so that distant pixels matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
    return network.eval().requires_grad_(False)


NETWORKS = {
    "SAFMN": lambda: SAFMN(dim=8, n_blocks=3, upscaling_factor=2),
    "SAFMN_BCIE": lambda: SAFMN_BCIE(dim=8, n_blocks=2, num_layers=2),
    "SAFMNPP": lambda: SAFMNPP(dim=12, n_blocks=2, upscaling_factor=3),
    "LightSAFMNPP": lambda: LightSAFMNPP(dim=8, n_blocks=2, upscaling_factor=4),
}


def streamed(network: Any, x: torch.Tensor, width: int, rows: int) -> torch.Tensor:
    """Return the network's output, joined from strips of ``width`` columns and computed ``rows`` rows at a time."""
    size = [side * network.scale for side in x.shape[2:]]
    chain = stages_of(network)
    assert chain is not None
    frame = TiledFrame(x, torch.full((*x.shape[:2], *size), torch.nan), network.scale, network.window, x.device)
    done = []
    for left in range(0, frame.width, width):
        right = min(left + width, frame.width)
        tiling.run_strip(
            frame,
            chain,
            left,
            right,
            halo=network.halo,
            window=network.window,
            rows=rows,
            progress=done.append,
        )
    assert sum(done) == pytest.approx(1)
    return frame.target


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("width", "rows", "working_set"), [(1024, 16, 2**26), (64, 32, 2**26), (1024, 1024, 1), (96, 16, 1)]
)
def test_streaming_equals_the_full_frame(
    name: str, width: int, rows: int, working_set: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "WORKING_SET", working_set)  # 1: stages process blocks of 64 columns
    network = lively(NETWORKS[name]())
    x = torch.rand(2, 3, 112, 144, generator=torch.Generator().manual_seed(1))
    full = network(x)
    assert full.std() > 0.05  # a constant output would test nothing
    assert (streamed(network, x, width, rows) - full).abs().max() <= TOLERANCE * max(1.0, full.abs().max().item())


def test_a_halo_that_is_too_small_changes_the_result() -> None:
    network = lively(NETWORKS["SAFMN"]())
    x = torch.rand(1, 3, 64, 208, generator=torch.Generator().manual_seed(1))
    network.halo = 16  # instead of 50
    assert (streamed(network, x, 64, 32) - network(x)).abs().max() > 10 * TOLERANCE


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 12), width=st.integers(1, 4), rows=st.sampled_from([8, 16, 40, 64]), blocks=st.integers(1, 2)
)
def test_streaming_for_any_size(height: int, width: int, rows: int, blocks: int) -> None:
    network = lively(SAFMN(dim=4, n_blocks=blocks, upscaling_factor=2), seed=blocks)
    x = torch.rand(1, 3, 8 * height, 8 * width, generator=torch.Generator().manual_seed(height))
    assert torch.allclose(streamed(network, x, 512, rows), network(x), atol=TOLERANCE)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [32, 96])
def test_the_estimate_of_streaming_memory(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WORKING_SET", 1)
    network = lively(NETWORKS[name]())
    chain = stages_of(network)
    assert chain is not None
    height = (network.halo + 3 * rows) // 16 * 16
    peaks = {}
    for width in (256, 512):
        x = torch.rand(1, 3, height, width)
        with PeakMemory() as memory:
            stream(
                chain,
                lambda a, b, x=x: x[:, :, a:b].clone(),
                lambda top, rows: None,
                height=height,
                width=width,
                rows=rows,
            )
        peaks[width] = memory.peak
    measured = (peaks[512] - peaks[256]) / 256
    assert 0.8 * measured < bytes_per_column(chain, rows) < 2 * measured


def test_streaming_keeps_few_rows() -> None:
    """A stage never gets more rows than a band and its halos, not even at the end, when all lines are emptied."""
    network = lively(SAFMN(dim=4, n_blocks=6, upscaling_factor=2))
    chain = stages_of(network)
    assert chain is not None
    heights: list[int] = []
    for module in (network.feats[0].safm, network.feats[5].safm, network.feats[5].ccm, network.to_img):
        module.register_forward_pre_hook(lambda module, inputs: heights.append(inputs[0].shape[2]))
    x = torch.rand(1, 3, 400, 8)
    out: list[torch.Tensor] = []
    stream(chain, lambda a, b: x[:, :, a:b], lambda top, rows: out.append(rows), height=400, width=8, rows=32)
    assert torch.cat(out, dim=2).shape == (1, 3, 800, 16)
    assert max(heights) <= 32 + 2 * 8


def photograph(photos_dir: Path, height: int, width: int) -> np.ndarray[Any, Any]:
    """Return a photograph, mirrored until it is large enough, as float32 in [0, 1]."""
    image = read_rgb(sorted((photos_dir / "val").glob("*.png"))[0])
    tall = np.vstack([image, image[::-1]] * (-(-height // (2 * image.shape[0]))))
    return (np.hstack([tall, tall[:, ::-1]] * (-(-width // (2 * tall.shape[1]))))[:height, :width] / 255).astype("f4")


@pytest.mark.parametrize(
    ("height", "width", "tile"),
    [(96, 328, 64), (336, 264, 128), pytest.param(64, 2048, 512, marks=pytest.mark.slow)],
)
def test_published_weights_tiled_equal_full(
    weights_dir: Path, photos_dir: Path, height: int, width: int, tile: int
) -> None:
    weights = weights_dir / "safmn_x2_official_fp16.pth"
    image = photograph(photos_dir, height, width)
    whole = Upscaler(weights, tile=0, device="cpu", backend="eager")(image)
    pieces = Upscaler(weights, tile=tile, device="cpu", backend="eager")(image)
    assert np.abs(whole - pieces).max() <= TOLERANCE
    assert 0.05 < whole.std() < 1


def test_8_bits_equal_but_for_rounding_ties(weights_dir: Path, photos_dir: Path) -> None:
    weights = weights_dir / "safmn_x2_official_fp16.pth"
    image = np.rint(photograph(photos_dir, 136, 264) * 255).astype(np.uint8)
    whole, pieces = (Upscaler(weights, tile=tile, device="cpu", backend="eager")(image) for tile in (0, 64))
    difference = np.abs(whole.astype(int) - pieces)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 1e-4 * difference.size


@pytest.mark.slow
def test_large_network_tiled_equals_full() -> None:
    network = lively(SAFMN(dim=128, n_blocks=16, upscaling_factor=2))
    x = torch.rand(1, 3, 16, 640, generator=torch.Generator().manual_seed(1))
    full = network(x)
    assert (streamed(network, x, 320, 16) - full).abs().max() <= TOLERANCE * full.abs().max().item()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 77), (5, 9), (44, 99)])
@pytest.mark.parametrize("tile", [0, 32])
def test_other_sizes_are_mirrored_and_cropped(height: int, width: int, tile: int) -> None:
    network = lively(NETWORKS["SAFMN"]())
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (0, -height % 8), (0, -width % 8)), mode="reflect")
    expected = network(torch.from_numpy(padded))[:, :, : 2 * height, : 2 * width].clamp(0, 1)
    result = Upscaler(network, tile=tile, device="cpu", backend="eager")(x)
    assert (result - expected).abs().max() <= TOLERANCE


def test_full_frame_semantics_give_the_result_of_the_network_itself() -> None:
    network = lively(NETWORKS["SAFMN"]())
    x = torch.rand(1, 3, 44, 99, generator=torch.Generator().manual_seed(1))
    published = Upscaler(network, device="cpu", full_frame_semantics=True)(x)
    assert torch.equal(published, network(x).clamp(0, 1))
    assert (published - Upscaler(network, device="cpu", backend="eager")(x)).abs().max() > 1e-3


class WholeFrame(nn.Module):
    """Depends on the whole frame, as SAFMNv3 does."""

    scale, window, halo = 2, 8, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Enlarge by nearest neighbour and add a little of the mean."""
        return nn.functional.interpolate(x, scale_factor=2) + 1e-3 * x.mean()


def test_blended_tiles_have_no_seams_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    upscaler = Upscaler(WholeFrame(), tile=64, device="cpu", backend="eager")
    image = np.tile(np.linspace(0.1, 0.9, 300, dtype=np.float32)[:, None, None], (1, 211, 3))
    with caplog.at_level(logging.WARNING):
        result = upscaler(image)
        upscaler(image)
    assert len([record for record in caplog.records if "whole frame" in record.message]) == 1
    assert np.abs(result - image.repeat(2, 0).repeat(2, 1)).max() < 2e-3
    assert np.abs(np.diff(result, axis=1)).max() < 1e-4


@pytest.mark.parametrize("name", ["safmnv3_x4", "safmn_ntire23_x4"])
def test_networks_that_see_the_whole_frame_are_blended(
    name: str, weights_dir: Path, photos_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = photograph(photos_dir, 96, 176)
    with caplog.at_level(logging.WARNING):
        whole = Upscaler(weights_dir / f"{name}.pth", tile=0, device="cpu", backend="eager")(image)
        assert not caplog.records
        pieces = Upscaler(weights_dir / f"{name}.pth", tile=96, device="cpu", backend="eager")(image)
    assert "depend on the whole frame" in caplog.text
    assert np.sqrt(np.mean((whole - pieces) ** 2)) < 0.01


def test_after_out_of_memory_the_pieces_are_smaller(caplog: pytest.LogCaptureFixture) -> None:
    network = lively(NETWORKS["SAFMN"]())
    x = torch.rand(1, 3, 40, 904, generator=torch.Generator().manual_seed(1))
    expected = network(x).clamp(0, 1)
    network.to_feat.register_forward_pre_hook(_out_of_memory_from(columns=400, after=1))
    with caplog.at_level(logging.WARNING):
        result = Upscaler(network, tile=512, device="cpu", backend="eager")(x)
    assert (result - expected).abs().max() <= TOLERANCE
    assert re.search("512 .*256", caplog.text)


@pytest.mark.parametrize("tile", [0, 64])
def test_out_of_memory_with_the_smallest_pieces_is_an_error(tile: int) -> None:
    network = lively(NETWORKS["SAFMN"]())
    network.to_feat.register_forward_pre_hook(_out_of_memory_from(columns=1, after=0))
    upscaler = Upscaler(network, tile=tile, device="cpu", backend="eager")
    with pytest.raises(DataError, match=r"not enough memory .*600x40 pixels"):
        upscaler(np.zeros((40, 600, 3), np.uint8))


def _out_of_memory_from(columns: int, after: int) -> Any:
    """Return a hook that fails for inputs of at least ``columns`` columns, but not in the first ``after`` calls."""
    calls = 0

    def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal calls
        calls += 1
        if inputs[0].shape[3] >= columns and calls > after:
            raise torch.OutOfMemoryError("out of memory")

    return hook


def test_other_errors_are_not_mistaken_for_lack_of_memory() -> None:
    network = lively(NETWORKS["SAFMN"]())
    network.to_feat.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Upscaler(network, tile=64, device="cpu", backend="eager")(np.zeros((40, 600, 3), np.uint8))


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 60), size=st.integers(1, 20), overlap=st.integers(0, 40))
def test_blending_weights_sum_to_one(length: int, size: int, overlap: int) -> None:
    spans = tiling._spans(8 * length, 8 * size, min(overlap, 4 * size), 8)
    total = torch.zeros(8 * length * 2)
    for (first, last), weights in zip(spans, tiling._weights(spans, min(overlap, 4 * size), 2), strict=True):
        assert first % 8 == 0
        total[2 * first : 2 * last] += weights
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


def frame_of(height: int, width: int) -> TiledFrame:
    blank = torch.empty(1, 3, height, width, device="meta")
    return TiledFrame(blank, blank, 2, 8, torch.device("cpu"))


@settings(max_examples=100, deadline=None)
@given(height=st.integers(8, 9000), width=st.integers(8, 20000), budget=st.floats(1e6, 1e10), halo=st.integers(0, 300))
def test_strips_stay_within_the_budget(height: int, width: int, budget: float, halo: int) -> None:
    def per_column(rows: int) -> float:
        return 1e5 + 1.2e3 * rows

    frame = frame_of(height, width)
    cut = tiling.choose_strip(frame, budget, halo, 8, per_column)
    assert cut.width % 8 == 0
    assert cut.rows % 8 == 0
    halo = -(-halo // 8) * 8
    strip = min(cut.width + 2 * halo, frame.width)
    if cut != tiling.choose_strip(frame, 0, halo, 8, per_column):
        assert strip * per_column(cut.rows) <= budget * 1.0001
    count = -(-frame.width // cut.width)
    assert count * strip <= 3 * (frame.width + halo) + 64 + 8 * count


def test_halving_ends() -> None:
    cut: TileSize | None = TileSize(4096, 4096)
    seen = []
    while cut is not None:
        seen.append(cut)
        cut = cut.halved(16, blended=False)
    assert [c.width for c in seen] == [4096, 2048, 1024, 512, 256, 128, 64]
    assert all(c.rows == 64 for c in seen[1:])


@pytest.mark.parametrize("window", [5, 12, 24, 40, 48, 96])
@pytest.mark.parametrize("blended", [True, False])
def test_halving_ends_for_windows_that_do_not_divide_the_smallest(window: int, blended: bool) -> None:
    cut: TileSize | None = TileSize(10 * 480, 10 * 480)
    widths = []
    while cut is not None:
        widths.append(cut.width)
        cut = cut.halved(window, blended=blended)
    assert widths == sorted(set(widths), reverse=True)
    assert widths[-1] == -(-64 // window) * window
