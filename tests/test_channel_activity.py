"""scripts/zoo/channel_activity.py finds dead channels and outputs out of range."""

from __future__ import annotations

import torch
from channel_activity import activity, on_drawings

from safmn.archs import SAFMN


def test_dead_channels_are_found() -> None:
    torch.manual_seed(0)
    network, images = SAFMN(dim=8, n_blocks=3), [torch.rand(3, 16, 24), torch.rand(3, 8, 8)]
    with torch.no_grad():
        network.feats[0].ccm.ccm[0].bias[:5] = -50.0
        network.feats[2].ccm.ccm[0].bias[:] = -50.0
    assert [dead for dead, *_ in activity(network, images)] == [5, 0, 16]


class Nearest(torch.nn.Module):
    """Enlarges with nearest neighbour and adds a constant."""

    scale = 2

    def __init__(self, added: float) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=2) + self.added


def test_outputs_out_of_range_are_found() -> None:
    lowest, highest, faithful = on_drawings(Nearest(0.0))
    assert (lowest, highest) == (0.0, 1.0)
    lowest, highest, far = on_drawings(Nearest(-0.75))
    assert (lowest, highest) == (-0.75, 1.0)
    assert far < faithful - 5
