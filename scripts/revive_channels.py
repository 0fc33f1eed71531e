"""Let dead channel mixers start anew: ``scripts/revive_channels.py WEIGHTS -o START.safetensors --blocks 2 3 4 5``.

In the named blocks the norm before the mixer and its 3x3 convolution are initialised as in a new network, and its 1x1
convolution is set to zero. A mixer whose hidden channels are all dead (scripts/channel_activity.py) only adds its bias,
so the network computes the same as before; but now the mixer gets gradients again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also without the package installed

from safmn import weights
from safmn.console import say
from safmn.errors import exit_status


@torch.no_grad()
def revive(network: nn.Module, blocks: list[int], seed: int) -> None:
    """Reset the mixers of ``blocks`` (of SAFMN) in place."""
    torch.manual_seed(seed)
    for number in blocks:
        block = network.feats[number]  # type: ignore[index, union-attr]
        nn.init.ones_(block.norm2.weight)
        nn.init.zeros_(block.norm2.bias)
        block.ccm.ccm[0].reset_parameters()
        nn.init.zeros_(block.ccm.ccm[2].weight)


@exit_status
def main() -> int:
    """Load, reset, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a name of safmn zoo, or a file")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--blocks", type=int, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = weights.load_network(arguments.weights)
    image = 0.35 + 0.3 * torch.rand(1, 3, 64, 64)  # noise of full contrast would wake dead channels
    before = network(image)
    revive(network, arguments.blocks, arguments.seed)
    weights.save_weights(arguments.output, params=network.state_dict())
    say(f"{arguments.output}: largest change of a random image: {float((network(image) - before).abs().max()):.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
