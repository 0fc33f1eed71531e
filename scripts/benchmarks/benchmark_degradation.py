"""Real-world training samples per second: BasicSR's data set and ``feed_data`` against ours, from the same files.

    python scripts/benchmarks/benchmark_degradation.py --photos DIR [--count 64] [--batch 8] [--workers 2]

Both read the same images, cut 400x400 from each, degrade it with the published options and cut a pair of patches. Each
side uses all cores in its own way:

- BasicSR: its loader, with the same number of workers, reads and cuts the images and makes the blur kernels. The main
  process degrades batches with torch on all cores. basicsr_degradation.py has the two changes it needs on a CPU.
- ours: the workers of our training loader do everything, sample by sample, on one core each.

A round starts a side's loader, discards the batches that were prefetched meanwhile, and times ``count`` samples.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

import basicsr_degradation
from benchmark_harness import Timing, argument_parser, report
from safmn.data import RealESRGANDataset, TrainingLoader
from safmn.errors import exit_status
from safmn.imaging import image_size, list_images

SIDE = 400
SEED = 0
AHEAD = 2  # batches that a worker prefetches

Side = Callable[[], contextlib.AbstractContextManager[Callable[[], object]]]


def basicsr_side(arguments: argparse.Namespace, names: list[str], folder: Path) -> Side:
    """Return a context manager that yields a function that makes a batch as BasicSR does."""
    dataset = basicsr_degradation.dataset(arguments.photos, names, folder / "meta_info.txt")
    model = basicsr_degradation.model(scale=arguments.scale, gt_size=arguments.gt_size, queue_size=arguments.batch * 4)

    @contextlib.contextmanager
    def running() -> Iterator[Callable[[], object]]:
        sampler = RandomSampler(dataset, replacement=True, num_samples=10**9)
        batches: Iterator[Any] = iter(
            DataLoader(
                dataset,
                arguments.batch,
                sampler=sampler,
                num_workers=arguments.workers,
                drop_last=True,
                prefetch_factor=AHEAD,
            )
        )
        with basicsr_degradation.on_cpu():
            yield lambda: model.feed_data(next(batches))

    return running


def our_side(arguments: argparse.Namespace, names: list[str], folder: Path) -> Side:
    """Return a context manager that yields a function that makes a batch as our training does."""
    meta_info = folder / "names.txt"
    meta_info.write_text("".join(f"{name}\n" for name in names))
    options = {
        "name": "benchmark",
        "type": "RealESRGANDataset",
        "phase": "train",
        "scale": arguments.scale,
        "dataroot_gt": str(arguments.photos),
        "meta_info": str(meta_info),
        "gt_size": arguments.gt_size,
        "use_hflip": True,
        **basicsr_degradation.PUBLISHED_BLUR,
        "degradation": basicsr_degradation.PUBLISHED,
    }
    loader = TrainingLoader(
        RealESRGANDataset(options),
        batch_size=arguments.batch,
        seed=SEED,
        enlarge_ratio=max(1.0, arguments.batch / len(names)),
        num_workers=arguments.workers,
        prefetch_factor=AHEAD,
    )

    @contextlib.contextmanager
    def running() -> Iterator[Callable[[], object]]:
        batches = loader.batches(0)
        yield lambda: next(batches)
        loader.close()

    return running


def time_round(side: Side, batches: int, ahead: int) -> float:
    """Return the seconds for ``batches`` batches, after discarding the ``ahead`` prefetched ones."""
    with side() as make_batch:
        for _ in range(ahead + 1):
            make_batch()
        start = time.perf_counter()
        for _ in range(batches):
            make_batch()
        return time.perf_counter() - start


def measure(sides: dict[str, Side], arguments: argparse.Namespace) -> dict[str, Timing]:
    """Time the sides in turn, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.warmup + arguments.rounds):
        for name, side in sides.items():
            taken = time_round(side, arguments.count // arguments.batch, AHEAD * arguments.workers)
            if number >= arguments.warmup:
                seconds[name].append(taken)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@exit_status
def main() -> int:
    """Run both sides and print samples per second; return the exit status."""
    parser = argument_parser(__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder of images, 400x400 or larger")
    parser.add_argument("--count", type=int, default=64, help="samples timed per round (default: 64)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="loader processes (default: one per core)")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--gt-size", type=int, default=256)
    arguments = parser.parse_args()
    if arguments.count % arguments.batch:
        parser.error(f"--count {arguments.count} must be a multiple of --batch {arguments.batch}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = [path.name for path in list_images(arguments.photos) if min(image_size(path)) >= SIDE]
    if not names:
        parser.error(f"{arguments.photos} has no image of {SIDE}x{SIDE} or larger")
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "BasicSR": basicsr_side(arguments, names, Path(folder)),
            "ours": our_side(arguments, names, Path(folder)),
        }
        timings = measure(sides, arguments)
    rates = {name: {"samples/s": f"{arguments.count / timing.median:.1f}"} for name, timing in timings.items()}
    report(
        f"{arguments.count} samples of {SIDE}x{SIDE}, x{arguments.scale}, {arguments.workers} workers, "
        f"{torch.get_num_threads()} threads in the main process",
        timings,
        baseline="BasicSR",
        json_line=arguments.json,
        extra=rates,
        facts={"images": len(names), "count": arguments.count, "workers": arguments.workers},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
