"""The 8-bit convolution of scripts/benchmarks/int8_convolution.py against whole numbers."""

from __future__ import annotations

import ctypes

import int8_convolution as measured
import pytest
import torch
from torch import nn

from safmn.errors import UserError
from safmn.kernels.cpu.compilation import compiler


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if compiler() is None:
        pytest.skip("no C++ compiler")
    try:
        return measured.load(tmp_path_factory.mktemp("int8"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (9, 70), (18, 131)])
def test_the_8_bit_convolution_is_that_of_whole_numbers(library: ctypes.CDLL, height: int, width: int) -> None:
    torch.manual_seed(height)
    conv, x = nn.Conv2d(36, 72, 3, 1, 1), torch.randn(36, height, width)
    sides = measured.Sides(library, conv, x)
    want = measured.exact(sides.quantised, x)
    assert (sides.image(sides.int8) - want).abs().max() < 2e-5
    with torch.no_grad():
        plain = nn.functional.gelu(conv(x[None]))[0]
    assert (sides.image(lambda to: sides.floats(False, to)) - plain).abs().max() < 2e-5
    assert 1e-4 < (want - plain).abs().max() < 0.1  # 8 bits cost something, and not much


def test_values_beyond_the_range_are_clipped(library: ctypes.CDLL) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(36, 72, 3, 1, 1), torch.randn(36, 6, 20)
    sides = measured.Sides(library, conv, x)
    sides.quantised = measured.Quantised(conv, 0.5)
    assert (sides.image(sides.int8) - measured.exact(sides.quantised, x)).abs().max() < 2e-5


def test_the_bounds_are_the_counted_products() -> None:
    seconds = {"whole network, float32": 1.0, "convolution, float32": 0.05, "convolution, bfloat16": 0.04}
    seconds |= {"convolution, 8 bits": 0.03, "peak, float32": 0.001, "peak, 8 bits": 0.001}
    rows = {row[0]: row[1:] for row in measured.bounds(seconds, nn.Conv2d(36, 72, 3), (360, 640), 8)}
    assert rows["8 bits"] == ["240", "840", "1.19x"]
    assert rows["bound: no convolution at all"] == ["0", "600", "1.67x"]
    # 4 products of 8 bits where there is one in float32, which is what F(4x4) saves
    assert rows["bound: 8-bit products alone"] == rows["bound: float32 products of F(4x4) alone"]
    products = 8 * 36 * 72 * 9 * 360 * 640
    assert float(rows["bound: 8-bit products alone"][0]) == pytest.approx(
        products / (4 * 12 * 16 * 2e5 / 1e-3) * 1e3, abs=1
    )
