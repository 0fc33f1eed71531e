"""Training samples per second: BasicSR's data set on PNG sub-images, ours on the same files, ours from a patch store.

    python scripts/benchmarks/benchmark_data.py --hr DIR [--scale 4] [--gt-size 256] [--threads 1]

The script cuts 480x480 sub-images from the first images of DIR, and makes their LR images and a patch store in a
temporary folder. Each side loads batches in one process, like one loader worker. With --device cuda the pixels of the
store are on the GPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from benchmark_harness import argument_parser, compare, report, use_threads
from safmn.data import KeyedDataset, SampleKey, build_dataset
from safmn.data.store_format import Source
from safmn.errors import exit_status
from safmn.imaging import imresize, list_images, read_rgb, write_image
from safmn.prepare.store import build_store
from safmn.registry import DATASET_REGISTRY, import_basicsr

SIDE = 480


def make_data(folder: Path, hr: Path, scale: int, count: int) -> None:
    """Cut ``count`` sub-images from the images in ``hr``, and make their LR images and the store."""
    large = (image for image in map(read_rgb, list_images(hr)) if min(image.shape[:2]) >= SIDE)
    for number, image in enumerate(itertools.islice(large, count)):
        image = image[:SIDE, :SIDE]
        write_image(folder / "HR" / f"{number:04d}.png", image)
        write_image(folder / "LR" / f"{number:04d}.png", imresize(image, 1 / scale))
    build_store(folder / "sub.store", Source(scale, str(folder / "HR"), str(folder / "LR"), "{}", None), jobs=2)


def batches_of(dataset: Any, batch_size: int) -> Callable[[], object]:
    """Return a function that loads the next batch of one of our data sets."""
    keyed, numbers = KeyedDataset(dataset, seed=0), itertools.count()

    def load() -> object:
        return keyed.batch([SampleKey(0, next(numbers)) for _ in range(batch_size)])

    return load


def basicsr_batches(options: dict[str, Any], batch_size: int) -> Callable[[], object]:
    """Return a function that loads a batch like a worker of BasicSR's loader."""
    import_basicsr()
    basicsr_dataset = DATASET_REGISTRY.get("PairedImageDataset")  # BasicSR's, since ours has a suffix
    dataset = basicsr_dataset({**options, "phase": "train", "io_backend": {"type": "disk"}})
    numbers = itertools.cycle(range(len(dataset)))
    return lambda: default_collate([dataset[next(numbers)] for _ in range(batch_size)])


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Time all sides and print the report."""
    crop = {"gt_size": arguments.gt_size, "use_hflip": True, "use_rot": True, "scale": arguments.scale, "name": "train"}
    disk = {"type": "PairedImageDataset", "dataroot_gt": f"{folder}/HR", "dataroot_lq": f"{folder}/LR", **crop}
    store = {"type": "PatchStore", "dataroot": f"{folder}/sub.store", "device": arguments.device, **crop}
    started = time.perf_counter()
    from_store = build_dataset(store, phase="train", scale=arguments.scale)
    start_up = time.perf_counter() - started
    size = arguments.batch_size
    timings = compare(
        {
            "BasicSR, PNG": basicsr_batches(disk, size),
            "ours, PNG": batches_of(build_dataset(disk, phase="train", scale=arguments.scale), size),
            f"ours, patch store ({arguments.device})": batches_of(from_store, size),
        },
        rounds=arguments.rounds,
        warmup=arguments.warmup,
        synchronize=torch.cuda.synchronize if arguments.device == "cuda" else None,
    )
    rate = {name: {"samples/s": round(size / timing.median)} for name, timing in timings.items()}
    title = f"A batch of {size}, GT {arguments.gt_size}, x{arguments.scale}, {len(from_store)} sub-images, one process"
    facts = {"samples_per_second": {name: row["samples/s"] for name, row in rate.items()}, "open_store_s": start_up}
    report(title, timings, baseline="BasicSR, PNG", json_line=arguments.json, extra=rate, facts=facts)


@exit_status
def main() -> int:
    """Make the data and measure; return the exit status."""
    parser = argument_parser(__doc__)
    parser.add_argument("--hr", type=Path, required=True, help=f"folder of images of at least {SIDE}x{SIDE}")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--gt-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=48, help="how many sub-images to cut")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the store's pixels are")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), arguments.hr, arguments.scale, arguments.images)
        measure(arguments, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
