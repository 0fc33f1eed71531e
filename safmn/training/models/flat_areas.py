"""A loss on endless areas of one colour, which are larger than any training patch.

SAFMN's receptive field reaches 65 pixels in each direction, and SAFMN pools by 8. With patches of 64 pixels, the
network therefore never sees the middle of a large area of one colour. Some networks have turned blue into a green mesh
there. Far from any border, such an area looks the same everywhere. A tile of 8x8 pixels with circular padding therefore
gives the same output as an endless area.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from safmn.data.drawing.shapes import colour

_STREAM = (0xF1A7,)  # keeps these random draws independent of those for the samples


def endless(network: nn.Module) -> nn.Module:
    """Return a copy of a network with circular padding in its convolutions."""
    tiled = copy.deepcopy(network)
    for module in tiled.modules():
        if isinstance(module, nn.Conv2d) and isinstance(module.padding, tuple) and any(module.padding):
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [side for side in module.padding[::-1] for _ in range(2)]
    return tiled


def tiles(colours: Tensor, side: int) -> Tensor:
    """Return one tile for each colour: (n, 3) to (n, 3, side, side)."""
    return colours[:, :, None, None].expand(-1, -1, side, side).contiguous()


def draw_colours(count: int, *seeds: int) -> Tensor:
    """Return random colours, most of them saturated, float32 (count, 3) in [0, 1]; they depend on the seeds only."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seeds, spawn_key=_STREAM)))
    return torch.tensor([colour(rng) for _ in range(count)], dtype=torch.float32) / 255


class FlatAreas:
    """The L1 loss between endless areas of one colour and the network's output for them.

    Args:
        network: the network to train. If it pools, its attribute ``window`` gives the pooling window. The side of the
            tiles is 8 pixels, or ``window`` if that is larger.
    """

    def __init__(self, network: nn.Module) -> None:
        self._tiled = endless(network)
        self._side = max(8, int(getattr(network, "window", 8)))

    def loss(self, network: nn.Module, colours: Tensor) -> Tensor:
        """Return the loss for colours (n, 3) in [0, 1] with the current parameters of ``network``."""
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        images = tiles(colours, self._side)
        output: Tensor = functional_call(self._tiled, state, (images,)).float()
        return (output - colours[:, :, None, None]).abs().mean()
