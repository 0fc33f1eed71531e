"""The mean of several weights of one network: ``scripts/zoo/average_weights.py A.pth B.pth ... -o MEAN.safetensors``.

Small batches push a network to and fro: weights that one run had at different iterations, or that several runs from one
start ended with, often have a mean that is better than each (Izmailov et al., 2018, arXiv 1803.05407; Wortsman et al.,
2022, arXiv 2203.05482; what it brought here: docs/weights.md). Weights that were trained apart from the start have no
common mean. Computed in float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn import weights
from safmn.errors import WeightsError, exit_status
from safmn.system.console import say
from safmn.weights.recognise import difference, shapes_of


def mean(files: Sequence[str]) -> weights.StateDict:
    """The mean of each tensor over the files (of ``.pth`` files the moving average, where they have one).

    Raises:
        WeightsError: they are of different networks, or one is no file of weights.
    """
    sums: weights.StateDict = {}
    for file in files:
        state = weights.load_state_dict(file)
        if sums and (wrong := difference(shapes_of(sums), shapes_of(state))):
            raise WeightsError(f"{file} is of another network than {files[0]}: {wrong}. Only equal ones have a mean.")
        for name, tensor in state.items():
            sums[name] = sums.get(name, 0) + tensor.to(torch.float64)
    return {name: (total / len(files)).to(torch.float32) for name, total in sums.items()}


@exit_status
def main() -> int:
    """Read, average, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="files, or names in the zoo")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".safetensors or .pth file to write")
    arguments = parser.parse_args()
    weights.save_weights(arguments.output, params=mean(arguments.weights))
    say(f"{arguments.output}: mean of {len(arguments.weights)} weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
