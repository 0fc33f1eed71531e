"""Latency for one image: spandrel's network in eager float32 against our back ends and precisions.

    python benchmark_inference.py                                # SAFMN x2, x3, x4; all back ends installed
    python benchmark_inference.py --sides native:fp32 openvino:fp32 native:bf16
    python benchmark_inference.py --networks "SAFMN-L x4" "SAFMNPP x4" "SAFMNv3 x4" --rounds 3
    python benchmark_inference.py --weights safmn-x2 my_x4.pth --set5 datasets/benchmark/Set5
    python benchmark_inference.py --device cuda                  # fp16, CUDA graphs, TensorRT where installed

The image is a photograph of the size that gives an output of 1280x720, rounded up to multiples of the network's window,
which both sides need. The weights are those of ``safmn zoo``, if it has some; other networks are untrained, which does
not affect the time. If spandrel does not have a network, the baseline is ours in eager float32.

Columns: ``paired`` is the median over the rounds of the ratio within a round. ``PSNR`` compares with the baseline's
result. ``8-bit`` is the share of the output's 8-bit values that differ from the baseline's, and the largest difference.
``peak`` is the memory of a process that does nothing else; on a GPU, the used GPU memory. ``lost on Set5`` is the loss
against fp32 in PSNR-Y.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from skimage import data
from torch import Tensor, nn

from benchmark_harness import Timing, argument_parser, compare, report, use_threads
from safmn import Upscaler, compat
from safmn.archs import SAFMN, SAFMN_BCIE
from safmn.errors import OptionError, UserError, did_you_mean, exit_status
from safmn.evaluation.sizes import size_named, sizes
from safmn.imaging import read_rgb
from safmn.inference.backends import NAMES, PRECISIONS, available_backends, make_backend
from safmn.metrics import psnr
from safmn.system.console import say
from safmn.weights import load_network, zoo

Run = Callable[[Tensor], Tensor]
AIMS = {"fp32": 2.2, "bf16": 3.5}
BASELINE = "baseline"


@dataclass(frozen=True)
class Subject:
    """A network to measure."""

    name: str
    network: nn.Module
    trained: bool

    @property
    def scale(self) -> int:
        """Output pixels per input pixel."""
        return int(self.network.scale)  # type: ignore[arg-type]

    def image(self, output: Sequence[int], device: torch.device) -> Tensor:
        """Return a photograph, (1, 3, h, w) in [0, 1], of at least the size that gives ``output`` (height, width)."""
        step = int(self.network.window)  # type: ignore[arg-type]
        height, width = (-(-side // self.scale // step) * step for side in output)
        picture = cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(picture).permute(2, 0, 1)[None].to(device).float().contiguous() / 255


def subject_named(name: str) -> Subject:
    """Return a network of a published size, with weights of the zoo if it has some, or that of a weight file.

    Raises:
        OptionError: there is no network or file of this name.
    """
    size = size_named(name)
    if size is None:
        if name in zoo.entries() or Path(name).exists():
            return Subject(name, load_network(name), trained=True)
        known = [each.name for each in sizes()]
        raise OptionError(f"no network {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    weights = name.lower().replace(" ", "-")
    if weights in zoo.entries():
        return Subject(name, load_network(weights), trained=True)
    return Subject(name, size.build(with_values=True), trained=False)


def baseline(network: nn.Module, device: torch.device) -> Run:
    """Return spandrel's network, or ours if spandrel has none, in eager float32."""
    if isinstance(network, SAFMN | SAFMN_BCIE):
        compat.repair_torchvision()  # spandrel imports torchvision
        import spandrel

        network = spandrel.ModelLoader().load_from_state_dict(dict(network.state_dict())).model
    network = network.to(device).eval()

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            y: Tensor = network(x)
        return y

    return run


def run_of(side: str, network: nn.Module, device: torch.device) -> Run:
    """Return the function of a side, which is ``baseline`` or ``BACKEND:PRECISION``."""
    if side == BASELINE:
        return baseline(network, device)
    name, _, precision = side.partition(":")
    return make_backend(name, network, device=device, precision=precision or "fp32")


def possible_sides(device: torch.device) -> list[str]:
    """Return ``BACKEND:PRECISION`` for every installed back end and every precision."""
    missing = available_backends(device)
    return [f"{name}:{p}" for p in PRECISIONS for name in NAMES if name != "auto" and missing[name] is None]


def build_sides(wanted: Sequence[str], network: nn.Module, device: torch.device) -> dict[str, Run]:
    """Return the baseline and the wanted sides that can run this network; print why others are left out."""
    sides: dict[str, Run] = {BASELINE: baseline(network, device)}
    for side in wanted:
        try:
            sides[side] = run_of(side, network, device)
        except UserError as error:
            say(f"left out: {error}")
    return sides


def nearness(y: Tensor, expected: Tensor) -> dict[str, object]:
    """Compare a result with the baseline's as images, and return the columns ``PSNR (dB)`` and ``8-bit``."""
    y, expected = y.double().clamp(0, 1), expected.double().clamp(0, 1)
    noise = float((y - expected).square().mean())
    levels = ((y * 255).round() - (expected * 255).round()).abs()
    share = float((levels > 0).double().mean())
    decibel = f"{-10 * torch.log10(torch.tensor(noise)).item():.1f}" if noise else "same"
    return {"PSNR (dB)": decibel, "8-bit": f"{share:.3%}, {int(levels.max())}" if share else "same"}


def paired(timings: Mapping[str, Timing]) -> dict[str, float]:
    """Return the speed-up of each side: the median over the rounds of the ratio within a round."""
    base = timings[BASELINE].seconds
    return {
        side: statistics.median(a / b for a, b in zip(base, timing.seconds, strict=True))
        for side, timing in timings.items()
    }


def set5_psnr(folder: Path, subject: Subject, backend: str, precision: str, device: torch.device) -> float:
    """Return the mean PSNR-Y over Set5, without a border of ``scale`` pixels.

    Raises:
        OptionError: the folder has no images.
    """
    upscaler = Upscaler(subject.network, backend=backend, precision=precision, device=device, tile=0)
    values = []
    for path in sorted((folder / "HR").glob("*.png")):
        low = folder / "LR_bicubic" / f"X{subject.scale}" / f"{path.stem}x{subject.scale}.png"
        result = upscaler(read_rgb(low))
        values.append(psnr(result, read_rgb(path)[: result.shape[0], : result.shape[1]], crop=subject.scale, y=True))
    if not values:
        raise OptionError(f"--set5 {folder}: no images in HR")
    return statistics.mean(values)


def set5_losses(folder: Path, subject: Subject, sides: Sequence[str], device: torch.device) -> dict[str, float]:
    """Return the loss in PSNR-Y on Set5, in dB, of each half-precision side; empty if it cannot be measured."""
    halves = [side for side in sides if side != BASELINE and not side.endswith("fp32")]
    if not (halves and subject.trained and (folder / "HR").is_dir()):
        return {}
    exact = set5_psnr(folder, subject, "eager", "fp32", device)
    return {side: exact - set5_psnr(folder, subject, *side.split(":"), device) for side in halves}


def peak_megabytes(subject: str, side: str, options: argparse.Namespace) -> float:
    """Return the peak memory in MB of a process that builds one side and runs it three times."""
    command = [sys.executable, __file__, "--peak-of", side, "--networks", subject, "--device", options.device]
    command += ["--output", *map(str, options.output)]
    command += [] if options.threads is None else ["--threads", str(options.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(subject: Subject, side: str, output: Sequence[int], device: torch.device) -> float:
    """Run one side three times and return the memory in MB; called in the child process."""
    x, run = subject.image(output, device), run_of(side, subject.network, device)
    for _ in range(3):
        run(x)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20
    # Not getrusage: its peak includes that of the parent process.
    status = Path("/proc/self/status")
    if not status.exists():
        raise OptionError("peak memory can only be measured on Linux; use --no-memory")
    return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 2**10


def measure(subject: Subject, options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Measure one network, print its table, and return its entry for the JSON line."""
    subject.network.to(device)
    x = subject.image(options.output, device)
    sides = build_sides(options.sides or possible_sides(device), subject.network, device)
    results = {side: run(x) for side, run in sides.items()}
    timings = compare(
        {side: lambda run=run: run(x) for side, run in sides.items()},  # type: ignore[misc]
        rounds=options.rounds,
        warmup=options.warmup,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else None,
    )
    ratios = paired(timings)
    losses = set5_losses(options.set5, subject, list(sides), device)
    columns: dict[str, dict[str, object]] = {}
    for side, y in results.items():
        columns[side] = {"paired": f"{ratios[side]:.2f}x"} | (
            nearness(y, results[BASELINE]) if side != BASELINE else {}
        )
        if side in losses:
            columns[side]["lost on Set5 (dB)"] = f"{losses[side]:.4f}"
        if not options.no_memory:
            columns[side]["peak (MB)"] = f"{peak_megabytes(subject.name, side, options):.0f}"
    size = f"{x.shape[3]}x{x.shape[2]}"
    title = f"{subject.name}{'' if subject.trained else ', untrained'}, {size} to x{subject.scale}, {device.type}"
    title += f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    summary = report(title, timings, baseline=BASELINE, extra=columns)
    summary |= {"paired": {side: round(ratio, 3) for side, ratio in ratios.items()}, "columns": columns}
    summary["best"] = say_best(ratios)
    return summary


def say_best(ratios: Mapping[str, float]) -> dict[str, object]:
    """Print the fastest side of each precision together with the target, and return them by precision."""
    best: dict[str, Any] = {}
    for precision in PRECISIONS:
        side = max((s for s in ratios if s.endswith(f":{precision}")), key=lambda s: ratios[s], default=None)
        if side is not None:
            aim = f"; target on two CPU cores: {AIMS[precision]}x" if precision in AIMS else ""
            say(f"fastest in {precision}: {side}, {ratios[side]:.2f}x{aim}")
            best[precision] = {"side": side, "ratio": round(ratios[side], 3)}
    return best


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argument_parser(__doc__)
    p.add_argument("--networks", nargs="+", default=["SAFMN x2", "SAFMN x3", "SAFMN x4"], metavar="NAME")
    p.add_argument("--weights", nargs="+", metavar="W", help="weight files or names of the zoo, instead of --networks")
    p.add_argument("--sides", nargs="+", metavar="BACKEND:PRECISION", help="default: all installed back ends")
    p.add_argument("--output", nargs=2, type=int, default=(720, 1280), metavar=("H", "W"), help="output size")
    p.add_argument("--device", default="cpu")
    p.add_argument("--set5", type=Path, default=Path("datasets/benchmark/Set5"), metavar="FOLDER")
    p.add_argument("--no-memory", action="store_true", help="do not measure memory (one process for each side)")
    p.add_argument("--peak-of", metavar="SIDE", help=argparse.SUPPRESS)
    return p


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    options = parser().parse_args(argv)
    use_threads(options.threads)
    device = torch.device(options.device)
    subjects = [subject_named(name) for name in options.weights or options.networks]
    if options.peak_of:
        say(str(measure_peak(subjects[0], options.peak_of, options.output, device)))
        return 0
    summaries = {subject.name: measure(subject, options, device) for subject in subjects}
    if options.json:
        best = next(iter(summaries.values()))["best"]
        say(json.dumps({"title": "inference", "best": best, "networks": summaries}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
