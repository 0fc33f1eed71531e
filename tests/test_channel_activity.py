"""Dead channels are found."""

from __future__ import annotations

import torch
from channel_activity import activity

from safmn.archs import SAFMN


def test_dead_channels_are_found() -> None:
    torch.manual_seed(0)
    network, images = SAFMN(dim=8, n_blocks=3), [torch.rand(3, 16, 24), torch.rand(3, 8, 8)]
    with torch.no_grad():
        network.feats[0].ccm.ccm[0].bias[:5] = -50.0
        network.feats[2].ccm.ccm[0].bias[:] = -50.0
    assert [dead for dead, *_ in activity(network, images)] == [5, 0, 16]
