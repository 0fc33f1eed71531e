"""The parameters of SAFMN's blocks, stacked: few small kernels convert and pad those of all blocks at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 8  # channels; a GPU's matrix units take bfloat16 in multiples of it


def aligned(channels: int) -> int:
    """The next multiple of :data:`ALIGNMENT`."""
    return -(-channels // ALIGNMENT) * ALIGNMENT


class Parameters(NamedTuple):
    """Those of all blocks, float32: (blocks, ...)."""

    norm1: Tensor  # (dim,) gain
    norm1_bias: Tensor
    depthwise: Tensor  # (dim, 9), the levels one after the other
    depthwise_bias: Tensor
    aggr: Tensor  # (dim, dim)
    aggr_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    mix: Tensor  # (hidden, dim, 3, 3)
    mix_bias: Tensor
    back: Tensor  # (dim, hidden)
    back_bias: Tensor


def stacked(network: Any) -> Parameters:
    """Those of a SAFMN's blocks."""
    blocks = network.feats
    dim = blocks[0].norm1.weight.shape[0]
    levels = [level for block in blocks for level in block.safm.mfr]

    def of(name: str) -> Tensor:
        return torch.stack([block.get_parameter(name) for block in blocks])

    return Parameters(
        norm1=of("norm1.weight"),
        norm1_bias=of("norm1.bias"),
        depthwise=torch.cat([level.weight for level in levels]).view(len(blocks), dim, 9),
        depthwise_bias=torch.cat([level.bias for level in levels]).view(len(blocks), dim),
        aggr=of("safm.aggr.weight").flatten(2),
        aggr_bias=of("safm.aggr.bias"),
        norm2=of("norm2.weight"),
        norm2_bias=of("norm2.bias"),
        mix=of("ccm.ccm.0.weight"),
        mix_bias=of("ccm.ccm.0.bias"),
        back=of("ccm.ccm.2.weight").flatten(2),
        back_bias=of("ccm.ccm.2.bias"),
    )
