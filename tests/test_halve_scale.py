"""``scripts/zoo/halve_scale.py``: the network for x2 gives the mean of each 2x2 pixels of the network for x4."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts" / "zoo"))
import halve_scale

from safmn.errors import WeightsError
from safmn.weights import load_network, load_state_dict


def test_each_pixel_is_the_mean_of_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x2.safetensors"
    monkeypatch.setattr("sys.argv", ["halve_scale.py", "safmn-x4-real", "-o", str(file)])
    assert halve_scale.main() == 0
    image = torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = load_network("safmn-x4-real").eval()(image)
        half = load_network(file).eval()(image)
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(whole, 2), rtol=0, atol=1e-5)


def test_other_weights_are_refused() -> None:
    with pytest.raises(WeightsError, match="scale 3"):
        halve_scale.halved(load_state_dict("safmn-x3"))
    with pytest.raises(WeightsError, match="only those of SAFMN"):
        halve_scale.halved({"weight": torch.zeros(1)})
