"""Dead channels are found, and revived without a change of what the network computes."""

from __future__ import annotations

import torch
from channel_activity import activity
from revive_channels import revive

from safmn.archs import SAFMN


def test_dead_channels_are_found_and_revived() -> None:
    torch.manual_seed(0)
    network, images = SAFMN(dim=8, n_blocks=3), [torch.rand(3, 16, 24), torch.rand(3, 8, 8)]
    with torch.no_grad():
        network.feats[0].ccm.ccm[0].bias[:5] = -50.0
        network.feats[2].ccm.ccm[0].bias[:] = -50.0
    assert [dead for dead, *_ in activity(network, images)] == [5, 0, 16]
    before = network(images[0][None])
    revive(network, [2], seed=1)
    assert torch.allclose(network(images[0][None]), before, atol=1e-6)
    assert [dead for dead, *_ in activity(network, images)] == [5, 0, 0]
    network(images[0][None]).sum().backward()
    assert network.feats[2].ccm.ccm[2].weight.grad.abs().min() > 0
