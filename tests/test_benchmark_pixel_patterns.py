"""Patterns of single pixels: the benchmark finds colours that they turn into, and the package's weights keep them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts" / "benchmarks"))
import pixel_patterns

from safmn.weights import load_network, zoo


class Tinting(torch.nn.Module):
    """Repeats pixels, and makes red brighter where a pixel differs much from its left neighbour."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sharp = (x - x.roll(1, dims=3)).abs().amax(1) > 0.9
        red = x.clone()
        red[:, 0] += 0.5 * sharp
        return red.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_colours_are_found_in_the_patterns_that_have_them() -> None:
    found = pixel_patterns.measure(Tinting(), "black and white")
    assert found["vertical stripes"] == 128
    assert found["horizontal stripes"] == 128  # at the left border of the pattern only
    assert max(pixel_patterns.measure(Tinting(), "two greys").values()) == 0
    assert pixel_patterns.measure(Tinting(), "red on white")["checks"] == pytest.approx(0.5)


@pytest.mark.parametrize("name", sorted(zoo.entries()))
def test_the_package_s_weights_keep_patterns_grey(name: str) -> None:
    network = load_network(name).eval()
    assert max(pixel_patterns.measure(network, "black and white").values()) < 120


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pixel_patterns, "PAIRS", {"two greys": pixel_patterns.PAIRS["two greys"]})
    monkeypatch.setattr("sys.argv", ["pixel_patterns.py", "safmn-x2"])
    assert pixel_patterns.main() == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| safmn-x2 | ")
