"""Testing a network on benchmark sets: BasicSR's pipeline against ours, with the same weights on the same images.

    python scripts/benchmarks/benchmark_testing.py [--weights safmn-x4] [--benchmark datasets/benchmark] [--threads 1]

BasicSR's side is its ``SRModel.validation`` with its ``PairedImageDataset``, loader and metrics, and spandrel's
network. Our side is what ``safmn test --weights`` does. Both compute PSNR and SSIM on the Y channel. Each side is a
process of its own, which is idle while the other one has its turn. Where the system allows it, a side is restricted to
as many processors as it has threads. Importing and loading is not measured. "CPU s" is the CPU time of a whole test, of
all threads; on a busy machine it is more reliable than the elapsed time. "system" is the kernel's part of it. The last
lines say how far the results of the sides differ: for the means of each set, and for single images.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

import safmn  # noqa: F401 - makes `import basicsr` work
from benchmark_harness import argument_parser, compare, report, use_threads
from safmn import compat, weights
from safmn.errors import exit_status
from safmn.evaluation import benchmark as testing
from safmn.runtime.distributed import Ranks
from safmn.system.console import say

BASELINE = "BasicSR"
SIDES = (BASELINE, "ours, torch", "ours")
Scores = Mapping[str, Mapping[str, float]]  # set, or set and image -> metric -> value


class Result(NamedTuple):
    """What one test of all sets took, and its scores."""

    computed: float  # seconds of CPU time, of all threads
    system: float  # the kernel's part of it
    memory: int  # peak so far, bytes
    means: Scores
    images: Scores


def basicsr_test(plan: testing.TestPlan) -> Callable[[], tuple[Scores, Scores]]:
    """Return a function that tests with BasicSR's classes, as ``basicsr.test.test_pipeline`` does."""
    from basicsr.data import build_dataloader, build_dataset
    from basicsr.models.sr_model import SRModel
    from basicsr.utils.registry import ARCH_REGISTRY

    compat.repair_torchvision()  # spandrel imports torchvision
    from spandrel.architectures.SAFMN import SAFMN

    if "SAFMN_spandrel" not in ARCH_REGISTRY:
        ARCH_REGISTRY.register(SAFMN, suffix="spandrel")
    section = dict(plan.section or {})
    opt: dict[str, Any] = {"is_train": False, "dist": False, "rank": 0, "world_size": 1, "num_gpu": 0, "name": "test"}
    opt |= {"network_g": {**section, "type": "SAFMN_spandrel"}, "path": {}, "scale": plan.scale}
    metrics = {name: {**metric} for name, metric in plan.metrics.items()}
    opt["val"] = {"save_img": False, "metrics": metrics}
    model = SRModel(opt)
    model.net_g.load_state_dict(plan.network.state_dict())
    loaders = {}
    for name, data in plan.sets.items():
        data = {**data, "io_backend": dict(data["io_backend"])}
        loaders[name] = build_dataloader(build_dataset(data), data, num_gpu=0, dist=False, sampler=None, seed=0)

    def run() -> tuple[Scores, Scores]:
        means = {}
        for name, loader in loaders.items():
            model.validation(loader, current_iter=0, tb_logger=None, save_img=False)
            means[name] = dict(model.metric_results)
        return means, {}

    return run


def our_test(plan: testing.TestPlan, kernels: Any) -> Callable[[], tuple[Scores, Scores]]:
    """Return a function that tests as ``safmn test`` does."""
    cpu = torch.device("cpu")

    def run() -> tuple[Scores, Scores]:
        ready = testing.prepared(replace(plan, kernels=kernels), cpu)
        results = [
            testing._run_set(ready, name, name, section, plan.applying, Ranks(), cpu)
            for name, section in plan.sets.items()
        ]
        images = {f"{result.name} {name}": scores for result in results for name, scores in result.per_image.items()}
        return {result.name: result.mean for result in results}, images

    return run


def serve(turns: Connection, name: str, source: str, folder: str, threads: int | None) -> None:
    """Test once for each message that arrives, until it is None."""
    import resource

    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    use_threads(threads)
    with tempfile.TemporaryDirectory() as results:
        plan = testing.plan_of_network(weights.load_network(source), source, Path(results), benchmark=folder)
        test = basicsr_test(plan) if name == BASELINE else our_test(plan, "torch" if "torch" in name else "auto")
        turns.send(None)
        while turns.recv():
            before = resource.getrusage(resource.RUSAGE_SELF)
            scores = test()
            after = resource.getrusage(resource.RUSAGE_SELF)
            system = after.ru_stime - before.ru_stime
            turns.send(Result(after.ru_utime - before.ru_utime + system, system, after.ru_maxrss * 1024, *scores))


class Side:
    """The process of a side, as the comparing process controls it."""

    def __init__(self, name: str, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._turns, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, *arguments))
        self._process.start()
        theirs.close()
        self._turns.recv()
        self.results: list[Result] = []

    def turn(self) -> None:
        """Let the side test all sets once."""
        self._turns.send(True)
        self.results.append(self._turns.recv())

    def end(self) -> None:
        """End the process."""
        self._turns.send(None)
        self._process.join()

    def columns(self, rounds: int) -> dict[str, str]:
        """Return what the side took in the last rounds, for the table."""
        results = self.results[-rounds:]
        computed, system = (statistics.median(values) for values in list(zip(*results, strict=True))[:2])
        memory = max(result.memory for result in results)
        return {"CPU s": f"{computed:.2f}", "system": f"{system:.2f}", "peak MB": f"{memory / 2**20:.0f}"}


def largest_difference(a: Scores, b: Scores, metric: str) -> float:
    """Return the largest difference of a metric between two sides."""
    return max(abs(a[name][metric] - b[name][metric]) for name in a)


@exit_status
def main() -> int:
    """Measure; return the exit status."""
    parser = argument_parser(__doc__)
    parser.add_argument("--weights", default="safmn-x4", help="weights of SAFMN: a file, or the name of shipped ones")
    parser.add_argument("--benchmark", default="datasets/benchmark", help="folder of the sets")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    arguments = parser.parse_args()
    weights.locate(arguments.weights)
    names = list(dict.fromkeys([BASELINE, *arguments.sides]))
    sides = {name: Side(name, arguments.weights, arguments.benchmark, arguments.threads) for name in names}
    began = time.perf_counter()
    try:
        turns = {name: side.turn for name, side in sides.items()}
        timings = compare(turns, rounds=arguments.rounds, warmup=arguments.warmup)
    finally:
        for side in sides.values():
            side.end()
    columns = {name: side.columns(arguments.rounds) for name, side in sides.items()}
    computed = {name: float(column["CPU s"]) for name, column in columns.items()}
    for name, column in columns.items():
        column["CPU ratio"] = f"{computed[BASELINE] / computed[name]:.2f}x"
    last = {name: side.results[-1] for name, side in sides.items()}
    threads = arguments.threads or torch.get_num_threads()
    title = f"{arguments.weights}, {', '.join(last[BASELINE].means)}, {threads} threads"
    facts = {"cpu_seconds": computed, "means": last[names[-1]].means, "seconds": time.perf_counter() - began}
    report(title, timings, baseline=BASELINE, json_line=arguments.json, extra=columns, facts=facts)
    for name in names[1:]:
        differences = (
            f"{metric} {largest_difference(last[BASELINE].means, last[name].means, metric):.1e}"
            for metric in ("psnr", "ssim")
        )
        say(f"{name}: largest difference of a set's mean from {BASELINE}: {', '.join(differences)}")
    if {"ours", "ours, torch"} <= set(names):
        differences = (
            f"{metric} {largest_difference(last['ours'].images, last['ours, torch'].images, metric):.1e}"
            for metric in ("psnr", "ssim")
        )
        say(f"largest difference of an image's score between torch and the kernels: {', '.join(differences)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
