"""What docs/programs.md says about spandrel, which ComfyUI and chaiNNer load weights with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import safmn
from safmn import compat
from safmn.weights import zoo

SHIPPED = sorted(Path(zoo.__file__).parent.glob("*.safetensors"))
UNKNOWN = ("safmn_ntire23_x4.pth", "safmnpp_x4.pth", "light_safmnpp_x4.pth", "safmnv3_x4.pth")


def load(file: Path) -> torch.nn.Module:
    compat.repair_torchvision()  # which spandrel imports
    spandrel = pytest.importorskip("spandrel")
    return spandrel.ModelLoader().load_from_file(file)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_spandrel_loads_the_weights_of_the_package(file: Path) -> None:
    assert len(SHIPPED) == 5
    x = 0.25 + 0.5 * torch.rand(1, 3, 37, 53, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = load(file)(x).clamp(0, 1)
    expected = safmn.Upscaler(safmn.load_network(file), backend="eager", tile=0, guard=False)(x)
    assert float((made - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", UNKNOWN)
def test_spandrel_does_not_know_the_challenge_entries(name: str, weights_dir: Path) -> None:
    with pytest.raises(Exception, match=r".*") as caught:
        load(weights_dir / name)
    assert type(caught.value).__name__ == "UnsupportedModelError"
