"""Noise on plain grey: the benchmark measures it, and the package's weights for photographs remove most of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts" / "benchmarks"))
import noise_left

from safmn.weights import load_network


def test_what_a_network_leaves_is_measured() -> None:
    assert noise_left.left(torch.nn.Identity(), 10) == pytest.approx(10, rel=0.03)


@pytest.mark.parametrize("name", ["safmn-x2-real", "safmn-x4-real"])
def test_weights_for_photographs_remove_noise(name: str) -> None:
    network = load_network(name).eval()
    assert all(noise_left.left(network, strength) < 0.3 * strength for strength in noise_left.STRENGTHS)


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(noise_left, "STRENGTHS", (5,))
    monkeypatch.setattr("sys.argv", ["noise_left.py", "safmn-x2-real"])
    assert noise_left.main() == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| safmn-x2-real | ")
