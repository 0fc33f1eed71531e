"""Average several weights of one network: ``scripts/zoo/average_weights.py A.pth B.pth ... -o MEAN.safetensors``.

Small batches make weights fluctuate. The mean of weights from different iterations of one run, or from several runs
with one start, is often better than each of them (Izmailov et al., 2018, arXiv 1803.05407; Wortsman et al., 2022, arXiv
2203.05482; docs/weights/findings.md has our results). Weights of runs with different starts cannot be averaged. The
mean is computed in float64.
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
    """Return the mean of each tensor over the files; ``.pth`` files contribute their EMA, if they have one.

    Raises:
        WeightsError: the files are of different networks, or one is not a file of weights.
    """
    sums: weights.StateDict = {}
    for file in files:
        state = weights.load_state_dict(file)
        if sums and (wrong := difference(shapes_of(sums), shapes_of(state))):
            raise WeightsError(f"{file} is of another network than {files[0]}: {wrong}. Average equal networks only.")
        for name, tensor in state.items():
            sums[name] = sums.get(name, 0) + tensor.to(torch.float64)
    return {name: (total / len(files)).to(torch.float32) for name, total in sums.items()}


@exit_status
def main() -> int:
    """Read, average and write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="files, or names in the zoo")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".safetensors or .pth file to write")
    arguments = parser.parse_args()
    weights.save_weights(arguments.output, params=mean(arguments.weights))
    say(f"{arguments.output}: mean of {len(arguments.weights)} weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
