"""Make SAFMN x2 out of SAFMN x4: ``scripts/zoo/halve_scale.py safmn-x4-real -o START.safetensors``.

Each pixel of the new network is the mean of the 2x2 pixels of the old one, because the last convolution is averaged
over them. A network for x2 starts from there with all that the other one has learned. The input may also be of another
even scale; the output is of half of that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn import weights
from safmn.errors import WeightsError, exit_status
from safmn.system.console import say

_UPSAMPLER = ("to_img.0.weight", "to_img.0.bias")


def halved(state: weights.StateDict) -> weights.StateDict:
    """Return the weights of the network that gives the mean of each 2x2 pixels of the original.

    Raises:
        WeightsError: the weights are not SAFMN's, or their scale is odd.
    """
    if not all(name in state for name in _UPSAMPLER):
        raise WeightsError(f"these weights have no {_UPSAMPLER[0]}; only those of SAFMN can be halved")
    scale = round((len(state[_UPSAMPLER[0]]) / 3) ** 0.5)
    if scale % 2 or len(state[_UPSAMPLER[0]]) != 3 * scale**2:
        raise WeightsError(f"these weights are of scale {scale}; only an even scale can be halved")
    return {name: _mean(tensor, scale) if name in _UPSAMPLER else tensor for name, tensor in state.items()}


def _mean(tensor: torch.Tensor, scale: int) -> torch.Tensor:
    """Average a tensor (3 * scale**2, ...) over squares of 2x2 of the pixel shuffle's channels."""
    half = scale // 2
    squares = tensor.double().reshape(3, half, 2, half, 2, *tensor.shape[1:])
    return squares.mean((2, 4)).reshape(3 * half**2, *tensor.shape[1:]).to(tensor.dtype)


@exit_status
def main() -> int:
    """Read, average and write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a file, or a name in the zoo")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".safetensors or .pth file to write")
    arguments = parser.parse_args()
    weights.save_weights(arguments.output, params=halved(weights.load_state_dict(arguments.weights)))
    say(f"{arguments.output}: half the scale of {arguments.weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
