"""Training iterations per second: BasicSR's loop against ours, with the same recipe on the same images.

    python scripts/benchmarks/benchmark_training.py [--batch-size 16] [--lq-size 64] [--sides "ours, bf16" ...] [--json]

BasicSR's side is its ``SRModel`` with the FFT loss added, its ``PairedImageDataset`` on PNG sub-images, its
``EnlargedSampler``, loader and prefetcher, and spandrel's network. Our side is the whole ``Trainer.run`` on a patch
store of the same images. The recipe is ``options/train_x4.yml``. The images are photographs of scikit-image, or those
in --hr DIR.

Each side is a separate process. While another side has its turn, the process and its loader workers are stopped with
SIGSTOP, so that they neither compute nor prefetch during that time. A turn has --iterations training iterations, and
the times in the table are per turn. "waiting" is the share of the time in which the training loop waits for its next
batch. "CPU s/it" is the CPU time of an iteration for all threads without the loader workers; it is more reliable than
the elapsed time on a busy machine. "peak MB" excludes the loader workers. "start s" is the time of the first iteration
in seconds, including compilation.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

import safmn  # noqa: F401 - makes `import basicsr` work
from benchmark_harness import argument_parser, compare, report, use_threads
from safmn.data.bundled_photos import photo_folder
from safmn.data.store_format import Source
from safmn.errors import exit_status
from safmn.imaging import imresize, list_images, read_rgb, write_image
from safmn.options import load_options
from safmn.prepare.store import build_store
from safmn.runtime.distributed import Ranks
from safmn.training.build import build_trainer

RECIPE = Path(__file__).resolve().parents[2] / "options/train_x4.yml"
SCALE = 4
PHOTOS = ("astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg")
SUB_IMAGE, STEP = 480, 240  # as published
BASELINE = "BasicSR, fp32"
# Keys that a side adds to `train` of the recipe; None stands for BasicSR's loop.
SIDES: dict[str, dict[str, Any] | None] = {
    BASELINE: None,
    "ours, fp32": {"precision": "fp32", "compile": False, "kernels": "torch"},
    "ours, fp32, native": {"precision": "fp32", "compile": False, "kernels": "native"},
    "ours, fp32, compiled": {"precision": "fp32", "compile": True},
    "ours, bf16": {"precision": "bf16", "compile": False},
    "ours, bf16, compiled": {"precision": "bf16", "compile": True},
    "ours, fp32, native, graph": {"precision": "fp32", "kernels": "native", "cuda_graph": True},
    "ours, bf16, graph": {"precision": "bf16", "cuda_graph": True},
    "ours, bf16, native, graph": {"precision": "bf16", "kernels": "native", "cuda_graph": True},
}
NEVER = 10**9
_LEAVING = 30  # seconds until a side that does not end is killed


@dataclass(frozen=True)
class Setting:
    """The settings of all sides."""

    folder: str  # with HR/*.png, LR/*.png, sub.store
    cuda: bool
    batch_size: int
    lq_size: int
    workers: int  # loader processes of BasicSR; ours slices a memory map in a thread
    threads: int | None

    @property
    def crops(self) -> dict[str, Any]:
        """The keys of the ``train`` data set that both loops need."""
        return {
            "name": "train",
            "gt_size": self.lq_size * SCALE,
            "use_hflip": True,
            "use_rot": True,
            "batch_size_per_gpu": self.batch_size,
            "dataset_enlarge_ratio": 10_000,  # so that no epoch ends during the measurement
        }


# --- the data --------------------------------------------------------------------------------------------------------


def make_data(folder: Path, hr: Path | None, count: int) -> int:
    """Cut at most ``count`` sub-images, make their LR images and the store, and return the number of sub-images."""
    files = list_images(hr) if hr is not None else [photo_folder() / name for name in PHOTOS]
    cuts = itertools.islice(itertools.chain.from_iterable(map(sub_images, map(read_rgb, files))), count)
    number = -1
    for number, image in enumerate(cuts):
        write_image(folder / "HR" / f"{number:04d}.png", image)
        write_image(folder / "LR" / f"{number:04d}.png", imresize(image, 1 / SCALE))
    if number < 0:
        sys.exit(f"no image of at least {SUB_IMAGE}x{SUB_IMAGE} in {hr}")
    build_store(folder / "sub.store", Source(SCALE, str(folder / "HR"), str(folder / "LR"), "{}", None), jobs=2)
    return number + 1


def sub_images(image: Any) -> Iterator[Any]:
    """Yield all 480x480 windows of an (H, W, 3) image with a step of 240."""
    height, width = image.shape[:2]
    for top in range(0, height - SUB_IMAGE + 1, STEP):
        for left in range(0, width - SUB_IMAGE + 1, STEP):
            yield image[top : top + SUB_IMAGE, left : left + SUB_IMAGE]


# --- in the process of a side ----------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """The measurements of one turn, which the process of a side sends."""

    waited: float  # seconds
    computed: float  # seconds of CPU time, of all threads, without the loader's workers
    memory: int  # peak so far, bytes


class Gate:
    """The source of a training loop's batches, which stops the loop after each turn and measures its waiting time."""

    def __init__(self, turns: Connection, cuda: bool) -> None:
        self.turns = turns
        self.cuda = cuda
        self.left = 0
        self.waited = 0.0
        self.began = time.process_time()

    def take(self, load: Callable[[], Any]) -> Any:
        """Return the next batch, ``load()``; after the end of a turn, first report it and wait for the next turn."""
        if self.left == 0:
            self._synchronize()
            computed = time.process_time() - self.began
            self.turns.send(Turn(self.waited, computed, self._peak_memory()))
            self.left = self.turns.recv()
            self.waited, self.began = 0.0, time.process_time()
            if self.left == 0:
                raise SystemExit
        self.left -= 1
        began = time.perf_counter()
        batch = load()
        self.waited += time.perf_counter() - began
        return batch

    def batches(self, source: Callable[[int], Iterator[Any]], start: int) -> Iterator[Any]:
        """Yield the batches of ``source(start)`` through :meth:`take`."""
        iterator = source(start)
        while True:
            yield self.take(lambda: next(iterator))

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _peak_memory(self) -> int:
        """Return the peak in bytes of the GPU memory of tensors, or of this process's resident memory."""
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):  # unlike getrusage's peak, this does not include the parent process's
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(turns: Connection, setting: Setting, name: str, train: Mapping[str, Any] | None) -> None:
    """Run one side's loop until it receives a turn of 0 iterations."""
    os.setpgrp()  # so that this process and its loader's workers can be stopped together
    log = os.open(f"{setting.folder}/{name}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2)
    use_threads(setting.threads)
    gate = Gate(turns, setting.cuda)
    if train is None:
        basicsr_loop(setting, gate)
    else:
        our_loop(setting, gate, name, train)


def our_loop(setting: Setting, gate: Gate, name: str, train: Mapping[str, Any]) -> None:
    """Train with our trainer from an option file; its batches go through the gate."""
    data = {
        "type": "PatchStore",
        "dataroot": f"{setting.folder}/sub.store",
        "device": "cuda" if setting.cuda else "cpu",
        "num_worker_per_gpu": 0,
        **setting.crops,
    }
    content = copy.deepcopy(load_options(RECIPE, mode="train").raw)
    content |= {"name": name, "num_gpu": int(setting.cuda), "datasets": {"train": data}, "val": None}
    content["path"]["experiments_root"] = f"{setting.folder}/experiments"
    content["train"] |= {**train, "total_iter": NEVER}
    content["logger"] |= {"save_checkpoint_freq": NEVER, "use_tb_logger": False}
    option_file = Path(setting.folder, f"{name}.yml")
    option_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    trainer = build_trainer(load_options(option_file, mode="train"), Ranks())
    trainer.loader.batches = functools.partial(gate.batches, trainer.loader.batches)
    trainer.run()


def basicsr_options(setting: Setting) -> dict[str, Any]:
    """Return the recipe in the form of BasicSR's ``parse_options``."""
    opt = copy.deepcopy(load_options(RECIPE, mode="train").raw)
    opt |= {"is_train": True, "dist": False, "rank": 0, "world_size": 1, "num_gpu": int(setting.cuda)}
    opt["network_g"]["type"] = "SAFMN_spandrel"
    opt["datasets"]["train"] = {
        "type": "PairedImageDataset",
        "phase": "train",
        "scale": SCALE,
        "dataroot_gt": f"{setting.folder}/HR",
        "dataroot_lq": f"{setting.folder}/LR",
        "io_backend": {"type": "disk"},
        "num_worker_per_gpu": setting.workers,
        "prefetch_mode": "cuda" if setting.cuda else None,
        "pin_memory": setting.cuda,
        **setting.crops,
    }
    return opt


def basicsr_model(opt: dict[str, Any]) -> Any:
    """Return BasicSR's ``SRModel`` with spandrel's network and the FFT loss of the published repository."""
    from basicsr.losses.basic_loss import L1Loss
    from basicsr.models.sr_model import SRModel
    from basicsr.utils.registry import ARCH_REGISTRY
    from spandrel.architectures.SAFMN import SAFMN

    if "SAFMN_spandrel" not in ARCH_REGISTRY:
        ARCH_REGISTRY.register(SAFMN, suffix="spandrel")

    class PixelAndFFT(L1Loss):  # type: ignore[misc]
        """The sum of two L1 losses: of the pixels, and, weighted, of the stacked real and imaginary parts."""

        def forward(self, pred: Any, target: Any) -> Any:
            spectra = (torch.fft.rfft2(image) for image in (pred, target))
            parts = [torch.stack([spectrum.real, spectrum.imag], dim=-1) for spectrum in spectra]
            fft = opt["train"]["fft_opt"]
            return super().forward(pred, target) + fft["loss_weight"] * super().forward(*parts)

    class SRModelWithFFT(SRModel):  # type: ignore[misc]
        def init_training_settings(self) -> None:
            super().init_training_settings()
            self.cri_pix = PixelAndFFT().to(self.device)

    return SRModelWithFFT(opt)


def basicsr_loop(setting: Setting, gate: Gate) -> None:
    """Train with the loop of ``basicsr.train.train_pipeline``, without its logging, and BasicSR's classes."""
    from basicsr.data import build_dataloader, build_dataset
    from basicsr.data.data_sampler import EnlargedSampler
    from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher

    torch.backends.cudnn.benchmark = True
    opt = basicsr_options(setting)
    section = opt["datasets"]["train"]
    dataset = build_dataset(section)
    sampler = EnlargedSampler(dataset, 1, 0, section["dataset_enlarge_ratio"])
    loader = build_dataloader(dataset, section, num_gpu=opt["num_gpu"], dist=False, sampler=sampler, seed=10)
    model = basicsr_model(opt)
    prefetcher = CUDAPrefetcher(loader, opt) if setting.cuda else CPUPrefetcher(loader)
    iteration = 0
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        prefetcher.reset()
        while (batch := gate.take(prefetcher.next)) is not None:
            iteration += 1
            model.update_learning_rate(iteration, warmup_iter=opt["train"].get("warmup_iter", -1))
            model.feed_data(batch)
            model.optimize_parameters(iteration)


# --- in the process that compares ------------------------------------------------------------------------------------


@dataclass
class Side:
    """The process of a side, as the comparing process controls it: it is stopped except during its turns."""

    name: str
    setting: Setting
    iterations: int
    process: Any = field(init=False)
    start_seconds: float = field(init=False)
    done: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.turns, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.setting, self.name, SIDES[self.name]))
        self.process.start()
        theirs.close()
        self._receive()  # the loop is built and asks for its first batch
        began = time.perf_counter()
        self._run(1)
        self.start_seconds = time.perf_counter() - began
        self.done.clear()
        self._pause()

    def turn(self) -> None:
        """Let the side train for one turn."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self._run(self.iterations)
        self._pause()

    def end(self) -> None:
        """End the process of the side and its workers."""
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):
            os.killpg(self.process.pid, signal.SIGCONT)
            self.turns.send(0)
            self.process.join(_LEAVING)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def _run(self, iterations: int) -> None:
        self.turns.send(iterations)
        self.done.append(self._receive())

    def _receive(self) -> Turn:
        try:
            return self.turns.recv()
        except EOFError:
            self.process.join()
            sys.exit(
                f"{self.name} failed:\n{Path(self.setting.folder, f'{self.name}.log').read_text(encoding='utf-8')}"
            )

    def _pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)


def measure(arguments: argparse.Namespace, setting: Setting) -> None:
    """Start the sides, time their turns, and print the report."""
    names = [BASELINE, *[name for name in arguments.sides if name != BASELINE]]
    sides: list[Side] = []
    try:
        for name in names:
            sides.append(Side(name, setting, arguments.iterations))
        timings = compare({side.name: side.turn for side in sides}, rounds=arguments.rounds, warmup=arguments.warmup)
    finally:
        for side in sides:
            side.end()
    device = device_name(setting)
    rows = {}
    for side in sides:
        timing, turns = timings[side.name], side.done[-arguments.rounds :]
        rows[side.name] = {
            "it/s": f"{arguments.iterations / timing.median:.2f}",
            "waiting": f"{sum(turn.waited for turn in turns) / sum(timing.seconds):.1%}",
            "CPU s/it": f"{statistics.median(turn.computed for turn in turns) / arguments.iterations:.2f}",
            "peak MB": round(turns[-1].memory / 1e6),
            "start s": f"{side.start_seconds:.1f}",
        }
    title = (
        f"Training x{SCALE}, batch {setting.batch_size}, LR {setting.lq_size}x{setting.lq_size}, {device}; "
        f"turns of {arguments.iterations} iterations"
    )
    report(
        title,
        timings,
        baseline=BASELINE,
        json_line=arguments.json,
        extra=rows,
        facts={"device": device, "batch": setting.batch_size, "lq_size": setting.lq_size, "sides": rows},
    )


def can_run(train: Mapping[str, Any] | None, cuda: bool) -> bool:
    """Return whether a side can run on this device; CUDA graphs need a GPU."""
    return cuda or not (train and train.get("cuda_graph"))


def device_name(setting: Setting) -> str:
    """Return the name of the GPU, or that of the CPU with the number of threads."""
    if setting.cuda:
        return torch.cuda.get_device_name()
    model = "CPU"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {setting.threads or torch.get_num_threads()} threads"


@exit_status
def main() -> int:
    """Make the data and measure; return the exit status."""
    cuda = torch.cuda.is_available()
    parser = argument_parser(__doc__)
    parser.add_argument("--hr", type=Path, help=f"folder of images of at least {SUB_IMAGE}x{SUB_IMAGE}")
    parser.add_argument("--images", type=int, default=96, help="largest number of sub-images to cut")
    parser.add_argument("--batch-size", type=int, default=64 if cuda else 16)
    parser.add_argument("--lq-size", type=int, default=64, help="side of the LR patches")
    parser.add_argument("--iterations", type=int, default=20 if cuda else 2, help="iterations in a turn")
    parser.add_argument("--workers", type=int, default=8 if cuda else 1, help="BasicSR's loader processes")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="besides BasicSR's; default: all that can run")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU even if there is a GPU")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), arguments.hr, arguments.images)
        shared = (arguments.batch_size, arguments.lq_size, arguments.workers, arguments.threads)
        setting = Setting(folder, cuda and not arguments.cpu, *shared)
        arguments.sides = arguments.sides or [name for name, train in SIDES.items() if can_run(train, setting.cuda)]
        measure(arguments, setting)
    return 0


if __name__ == "__main__":
    sys.exit(main())
