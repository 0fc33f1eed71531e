"""The counted cost of every network in the published tables, and why some figures are printed otherwise.

A printed figure agrees with the count, or it agrees with the count changed as the row's note says, or the note says
that the difference is unexplained or cannot be counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from safmn.archs.complexity import Complexity, complexity
from safmn.evaluation.costs import Cost, cost_of
from safmn.evaluation.methods import Method, untrained
from safmn.evaluation.published import Row, rows
from safmn.evaluation.sizes import size_named
from safmn.registry import ARCH_REGISTRY, find

_TABLES = ("efficient", "classic", "winners", "newer")
PARAMS, MADDS, ACTS = range(3)
ROWS = [row for row in rows() if row.table in _TABLES and row.network != "Bicubic" and (row.params or row.madds)]

_HR = 720 * 1280  # pixels of the output
_TOLERANCE = 3e-4  # SwinIR x2: 2951.4 follows from the note, 2952 is printed


def _pixels(row: Row) -> int:
    """Return the pixels of the input, whose width is rounded up."""
    return (720 // row.scale) * -(-1280 // row.scale)


def _narrower(row: Row) -> float:
    """Return the part of the input that the classic table counts: at x3, 426 of its 427 columns."""
    return 426 / 427 if row.scale == 3 else 1.0


def _transposed_at_output(channels: int, size: int, inputs: int, outputs: int, other: int | None = None) -> float:
    """Return what a transposed convolution adds, in G, if it is counted at its output (there with another size)."""
    return channels * ((other or size) ** 2 * outputs - size**2 * inputs) / 1e9


def _fsrcnn_weights(row: Row, count: float) -> float:
    network = find(ARCH_REGISTRY, "FSRCNN")()
    return sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1) / 1e3


def _lapsrn_madds(row: Row, count: float) -> float:
    change = 0.0
    for level in range(row.scale // 2):
        inputs = _pixels(row) * 4**level
        change += _transposed_at_output(64 * 64, 4, inputs, 4 * inputs, other=3)
    return (count + change) / (4 if row.scale == 2 else 1)  # x2: for an output of 640x360


def _lapar_madds(row: Row, count: float) -> float:
    factors = (16 + 4) * 2 * 32 * _pixels(row) + 2 * 32 * _HR  # units and blocks of 32 channels, and the tail
    return count - 3 * 72 * 25 * _pixels(row) * row.scale**2 / 1e9 + factors / 1e9


def _san_madds(row: Row, count: float) -> float:
    pixels = _pixels(row)
    quarters = [(h, w) for h in _halves(720 // row.scale) for w in _halves(-(-1280 // row.scale))]
    attention = 2 * sum(h * w * (h // 2) * (w // 2) * 16 for h, w in quarters)
    covariance = 20 * 64 * 64 * pixels
    residuals = 20 * 10 * 64 * pixels
    return (count - (attention + covariance - residuals) / 1e9) * _narrower(row)


def _halves(side: int) -> tuple[int, int]:
    return side // 2, side - side // 2


@functools.cache
def _wide_han(scale: int) -> Complexity:
    with torch.device("meta"):
        return complexity(find(ARCH_REGISTRY, "HAN")(scale=scale, n_feats=128))


def _han_madds(row: Row, count: float) -> float:
    between_layers = 2 * 11 * 11 * 128 * _pixels(row)
    return (_wide_han(row.scale).multiply_adds - between_layers) / 1e9 * _narrower(row)


def _swinir_madds(row: Row, count: float) -> float:
    """Return the count for a height that is padded by a whole window, although it is a multiple of it."""
    return count * (720 // row.scale // 8 + 1) / (720 // row.scale // 8)


def _elementwise(values: int) -> Callable[[Row, float], float]:
    """Return the change of a count that also has ``values`` sums and products per input pixel."""
    return lambda row, count: (count + values * _pixels(row) / 1e9) * (_narrower(row) if row.table == "classic" else 1)


# (network, quantity) -> what the row's note says about the count, in the units of tables: the printed figure results.
EXPLAINED: dict[tuple[str, int], Callable[[Row, float], float]] = {
    ("FSRCNN", PARAMS): _fsrcnn_weights,
    ("FSRCNN", MADDS): lambda row, count: (
        count + _transposed_at_output(56, 9, _pixels(row), _pixels(row) * row.scale**2)
    ),
    ("VDSR", ACTS): lambda row, count: round(count, -1),
    ("LapSRN", PARAMS): lambda row, count: count - 2 * 64 * 64 * (16 - 9) / 1e3,
    ("LapSRN", MADDS): _lapsrn_madds,
    ("LAPAR-A", MADDS): _lapar_madds,
    ("ECBSR-M16C64", PARAMS): lambda row, count: count + 17 * 64 / 1e3,
    ("SMSR", PARAMS): lambda row, count: count - 5 * 64 * 4 * 2 / 1e3,
    ("EDSR", MADDS): _elementwise(32 * 256),
    ("RCAN", MADDS): _elementwise(0),
    ("SAN", MADDS): _san_madds,
    ("HAN", PARAMS): lambda row, count: _wide_han(row.scale).params / 1e3,
    ("HAN", MADDS): _han_madds,
    ("SwinIR", MADDS): _swinir_madds,
    ("RFDN", MADDS): _elementwise(4 * 50 + 4 * 3 * 50 + 50),  # gates, residuals, the long skip
    ("RLFN", MADDS): _elementwise(6 * 52 + 6 * 52 + 52),
    ("SMFANet", MADDS): lambda row, count: float(-(-count // 1)),
    ("CFSR", MADDS): _elementwise(25 * 48 * 5),
}

# Not explained, slips, and what depends on images: (network, scale, quantity) -> a word that the note must have.
UNCOUNTABLE = {
    ("IMDN", 2, MADDS): "unexplained",
    ("SAN", 2, MADDS): "unexplained",
    ("SAN", 2, PARAMS): "those of x4",
    ("EDSR", 4, PARAMS): "slip",
    ("SMSR", 2, MADDS): "sparsity",
    ("SMSR", 3, MADDS): "sparsity",
    ("SMSR", 4, MADDS): "sparsity",
}


def _cost(row: Row) -> Cost:
    size = size_named(f"{row.network} x{row.scale}")
    assert size is not None, "a network of a published table is missing"
    method: Method = untrained(size)
    return Cost(method, cost_of(method).counted, row)


def _marked(row: Row) -> Any:
    """Return a test's parameter; building the large networks takes seconds each."""
    marks = (pytest.mark.slow,) if row.table == "classic" and row.network != "SAFMN-L" else ()
    return pytest.param(row, id=f"{row.table}-{row.network}-x{row.scale}", marks=marks)


@pytest.mark.parametrize("row", [_marked(row) for row in ROWS])
def test_every_printed_cost_is_counted_or_explained(row: Row) -> None:
    cost = _cost(row)
    assert cost.values is not None
    for index, (count, figure) in enumerate(zip(cost.values, cost.figures, strict=True)):
        if figure is None or figure.agrees(count):
            continue
        assert row.note, f"{figure.text} is printed, {count:.3f} is counted, and no note says why"
        word = UNCOUNTABLE.get((row.network, row.scale, index))
        if word is not None:
            assert word in row.note
        else:
            explained = EXPLAINED[row.network, index](row, count)
            rounded = figure.agrees(explained) or abs(explained / figure.value - 1) < _TOLERANCE
            assert rounded, f"{figure.text} is printed, {explained:.3f} follows from the note"
