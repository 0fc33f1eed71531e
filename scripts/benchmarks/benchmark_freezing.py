"""Measure what freezing the first blocks of SAFMN saves in a training step on a CPU.

Steps with and without frozen weights take turns. The CPU time of a step is the median over the turns.

    python scripts/benchmarks/benchmark_freezing.py [--steps 7] [--frozen 6]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from safmn.archs import SAFMN
from safmn.kernels.cpu.build import can_load
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.system.console import say, table
from safmn.training.models.trained_network import TrainedNetwork

_BATCH, _SIDE = 8, 48


def _trained(kernels: str, frozen: int) -> TrainedNetwork:
    names = ["to_feat.*", *(f"feats.{block}.*" for block in range(frozen))]
    return TrainedNetwork(
        SAFMN(dim=36, n_blocks=8, upscaling_factor=4),
        Execution(torch.device("cpu"), kernels=kernels),  # type: ignore[arg-type]
        Ranks(),
        optimizer={"type": "Adam", "lr": 1e-3},
        schedule=lambda iteration, base: base,
        weights_by_name=[{"names": names, "lr_factor": 0}] if frozen else [],
    )


def _seconds(trained: TrainedNetwork, iteration: int) -> float:
    lq = torch.rand(_BATCH, 3, _SIDE, _SIDE)
    began = time.process_time()
    trained.set_learning_rate(iteration)
    for image in trained.micro_batches([lq], parts=1):
        trained.backward({"l1": trained.forward(image).abs().mean()})
    trained.update()
    return time.process_time() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--frozen", type=int, default=6, help="of 8 blocks; to_feat is frozen with them")
    arguments = parser.parse_args()
    rows: list[list[object]] = []
    for kernels in ("torch", "native") if can_load() else ("torch",):
        kinds = [_trained(kernels, 0), _trained(kernels, arguments.frozen)]
        for each in kinds:
            _seconds(each, 1)
        turns = [[_seconds(each, step + 2) for each in kinds] for step in range(arguments.steps)]
        free, frozen = (statistics.median(column) for column in zip(*turns, strict=True))
        rows.append([kernels, f"{free:.3f}", f"{frozen:.3f}", f"{frozen / free:.2f}"])
    say(f"SAFMN x4, {_BATCH} patches of {_SIDE}x{_SIDE}, to_feat and {arguments.frozen} of 8 blocks frozen")
    say(table(["kernels", "all trained, CPU s", "frozen, CPU s", "ratio"], rows))


if __name__ == "__main__":
    main()
