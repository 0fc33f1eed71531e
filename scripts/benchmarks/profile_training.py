"""Profile a training step: ``profile_training.py -opt FILE [--iterations N]``.

Trains with an option file, without validation and without saving, and prints:

- the iterations per second, including loading
- with ``cuda_graph``, the time of the recorded step alone
- the slowest kernels (on a CPU: torch's operations), with their time and count in one iteration, from torch's profiler
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.errors import exit_status
from safmn.options import load_options
from safmn.runtime.distributed import Ranks
from safmn.system.console import say
from safmn.training.build import build_trainer
from safmn.training.trainer import Trainer

WARM_UP = 10  # iterations for compilation, recording and the allocation of page-locked memory
PROFILED = 5


class _Enough(Exception):
    """Ends the run after the measurement."""


def build(option_file: str, folder: str) -> Trainer:
    """Return a trainer of the option file that neither validates nor saves; ``folder`` is for its files."""
    content = copy.deepcopy(load_options(option_file, mode="train").raw)
    content["datasets"] = {"train": content["datasets"]["train"]}
    content |= {"name": "profile", "val": None}
    content["path"]["experiments_root"] = folder
    content["train"]["total_iter"] = 10**9
    content["logger"] |= {"save_checkpoint_freq": 10**9, "use_tb_logger": False}
    file = Path(folder, "profile.yml")
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return build_trainer(load_options(file, mode="train"), Ranks())


def table(profiled: profile, device: torch.device, rows: int) -> list[str]:
    """Return the lines of a Markdown table: time in us and count in one iteration of the slowest ``rows`` kernels."""
    microseconds, counts = Counter[str](), Counter[str]()
    for event in profiled.events():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu == (device.type == "cuda"):
            microseconds[event.name] += event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
            counts[event.name] += 1
    total = sum(microseconds.values()) / PROFILED
    lines = ["| us | count | kernel |", "| ---: | ---: | --- |", f"| {total:.0f} | | all |"]
    for name, time_taken in microseconds.most_common(rows):
        lines.append(f"| {time_taken / PROFILED:.0f} | {counts[name] / PROFILED:.0f} | {name[:90]} |")
    return lines


class Observer:
    """Replaces the model's training step to measure, then profile, then end the run."""

    def __init__(self, trainer: Trainer, iterations: int, rows: int) -> None:
        self.model: Any = trainer.model
        self.step, self.iterations, self.rows = self.model.training_step, iterations, rows
        self.device: torch.device = self.model.execution.device
        self.profiler: profile | None = None
        self.model.training_step = self

    def wait(self) -> float:
        """Wait until the device is idle, and return the time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, batches: Any, iteration: int) -> Any:
        """Run one training step, and start or end a measurement before it."""
        if iteration == WARM_UP:
            self.began = self.wait()
        if iteration == WARM_UP + self.iterations:
            say(f"{self.iterations / (self.wait() - self.began):.1f} iterations a second, data included")
            self.replay()
            activity = ProfilerActivity.CUDA if self.device.type == "cuda" else ProfilerActivity.CPU
            self.profiler = profile(activities=[activity])
            self.profiler.start()
        if self.profiler and iteration == WARM_UP + self.iterations + PROFILED:
            self.wait()
            self.profiler.stop()
            say("\n".join(table(self.profiler, self.device, self.rows)))
            raise _Enough
        return self.step(batches, iteration)

    def replay(self) -> None:
        """Print the time of the recorded step alone, if the model uses a CUDA graph."""
        graphed = getattr(self.model, "_graphed", None)
        if graphed is None:
            return
        began = self.wait()
        for _ in range(self.iterations):
            graphed._graph.replay()
        say(f"{(self.wait() - began) / self.iterations * 1e3:.2f} ms for the recorded step alone")


@exit_status
def main() -> int:
    """Train, measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", required=True, help="option file of a training")
    parser.add_argument("--iterations", type=int, default=100, help="timed iterations")
    parser.add_argument("--rows", type=int, default=40, help="number of kernels in the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(arguments.opt, folder)
        Observer(trainer, arguments.iterations, arguments.rows)
        try:
            trainer.run()
        except _Enough:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
