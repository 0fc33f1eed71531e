"""The mean of two weights of one network: ``scripts/average_weights.py BEFORE AFTER -o OUTPUT.pth``.

For a run that started from BEFORE and ended, not far from it, with AFTER: the mean has most of what the one was good at
and most of what the other learnt (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). Of weights
from different runs the mean is no good at all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also without the package installed

from safmn import weights
from safmn.console import say
from safmn.errors import DataError, exit_status


def mean(before: dict[str, Tensor], after: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """``share`` of ``after`` and the rest of ``before``.

    Raises:
        DataError: they are not of one network.
    """
    shapes, others = ({name: tensor.shape for name, tensor in state.items()} for state in (before, after))
    if shapes != others:
        differing = sorted(name for name in shapes | others if shapes.get(name) != others.get(name))
        raise DataError(f"the weights are not of one network: {differing[0]} is in one only, or has another shape")
    return {name: torch.lerp(tensor.float(), after[name].float(), share) for name, tensor in before.items()}


@exit_status
def main() -> int:
    """Load, average, save; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help=".pth to write, with params_ema")
    parser.add_argument("--share", type=float, default=0.5, help="of AFTER")
    arguments = parser.parse_args()
    if not 0 <= arguments.share <= 1:
        parser.error("--share must be from 0 to 1")
    states = [weights.load_state_dict(path, param_key="params_ema") for path in (arguments.before, arguments.after)]
    state = mean(*states, arguments.share)
    weights.save_weights(arguments.output, params=state, params_ema=state)
    say(f"{arguments.output}: {1 - arguments.share:g} of {arguments.before}, {arguments.share:g} of {arguments.after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
