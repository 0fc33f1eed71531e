"""A loss on areas of one colour that have no end, which no patch can show.

SAFMN looks 65 pixels far and pools by 8. What it does in the middle of a large area of one colour, patches of 64 pixels
never teach it, and networks have answered blue with a green mesh there. Far from any border such an area looks the same
wherever one stands. So a tile of 8x8 pixels that goes on in itself gives what an endless area gives.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from safmn.data.drawing import colour

_STREAM = (0xF1A7,)  # keeps these draws apart from those of the samples


def endless(network: nn.Module) -> nn.Module:
    """A copy of a network whose convolutions pad with the opposite side: a tile goes on in itself."""
    tiled = copy.deepcopy(network)
    for module in tiled.modules():
        if isinstance(module, nn.Conv2d) and isinstance(module.padding, tuple) and any(module.padding):
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [side for side in module.padding[::-1] for _ in range(2)]
    return tiled


def tiles(colours: Tensor, side: int) -> Tensor:
    """Tiles of one colour: (n, 3) to (n, 3, side, side)."""
    return colours[:, :, None, None].expand(-1, -1, side, side).contiguous()


def draw_colours(count: int, *seeds: int) -> Tensor:
    """Colours, of which most are saturated: float32 (count, 3) in [0, 1], a function of the seeds."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seeds, spawn_key=_STREAM)))
    return torch.tensor([colour(rng) for _ in range(count)], dtype=torch.float32) / 255


class FlatAreas:
    """The mean distance (L1) between endless areas of one colour and what a network makes of them.

    Args:
        network: that is trained; has ``window``, of which the tile's side is a multiple, if it pools.
    """

    def __init__(self, network: nn.Module) -> None:
        self._tiled = endless(network)
        self._side = max(8, int(getattr(network, "window", 8)))

    def loss(self, network: nn.Module, colours: Tensor) -> Tensor:
        """The loss of colours (n, 3), in [0, 1], with the parameters that ``network`` has now."""
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        images = tiles(colours, self._side)
        output: Tensor = functional_call(self._tiled, state, (images,)).float()
        return (output - colours[:, :, None, None]).abs().mean()
