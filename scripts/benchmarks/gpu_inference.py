"""Time and memory of inference on a GPU: every back end and precision that can run, for an output of 1280x720.

    python scripts/benchmarks/gpu_inference.py [--weights safmn-x4 safmn-x2] [--seconds 120] > gpu.jsonl

Prints one line of JSON for each side as soon as it is measured: the weights, the side (BACKEND:PRECISION; "baseline" is
spandrel's network in eager mode), the median and least milliseconds for one image, the peak memory of tensors in MB, as
the paper's run-time table counts it (SAFMN x4: 65.26 M and 10.71 ms on its GPU), the seconds until the first result and
the distance to the baseline. A side that fails has the key "error" and stops no other. Sides that would begin after
--seconds are left out, and named. ``scripts/benchmarks/gpu.sh`` runs this with everything else for a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from benchmark_inference import BASELINE, Run, Subject, nearness, run_of, subject_named

from safmn.errors import UserError, exit_status, first_line
from safmn.inference.backends import available_backends
from safmn.system.console import say

# In the order of their worth, should the time run out.
SIDES = (
    BASELINE,
    *(f"{name}:{precision}" for precision in ("fp16", "bf16") for name in ("triton", "cuda-graphs", "eager")),
    *(f"{name}:fp32" for name in ("cuda-graphs", "eager")),
    *(f"tensorrt:{precision}" for precision in ("fp16", "fp32")),
    *(f"compile:{precision}" for precision in ("fp16", "bf16", "fp32")),
)


class Clock:
    """Measures single calls on a device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.cuda:
            torch.cuda.synchronize()

    def peak(self) -> float | None:
        """Return the peak memory of tensors in MB since the last call; None on a CPU."""
        if not self.cuda:
            return None
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return peak

    def milliseconds(self, run: Run, x: torch.Tensor) -> float:
        """Return how long a call takes on the device."""
        if not self.cuda:
            began = time.perf_counter()
            run(x)
            return (time.perf_counter() - began) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(x)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def measured(
    subject: Subject, side: str, x: torch.Tensor, expected: torch.Tensor | None, calls: int
) -> dict[str, object]:
    """Return what one side takes. The peak is that of warm calls, without what building it took."""
    clock, began = Clock(x.device), time.perf_counter()
    run = run_of(side, subject.network, x.device)
    y = run(x)
    clock.wait()
    facts: dict[str, object] = {"first_s": round(time.perf_counter() - began, 2)}
    for _ in range(3):
        run(x)
    clock.wait()
    clock.peak()
    times = [clock.milliseconds(run, x) for _ in range(calls)]
    facts |= {"ms": round(statistics.median(times), 4), "least_ms": round(min(times), 4)}
    peak = clock.peak()
    if peak is not None:
        facts["peak_mb"] = round(peak, 2)
    if expected is not None:
        facts |= nearness(y.cpu(), expected)
    return facts


def sides_for(device: torch.device, wanted: Sequence[str] | None) -> list[str]:
    """Return the sides whose back ends can be used on this device."""
    missing = available_backends(device)
    return [side for side in wanted or SIDES if side == BASELINE or missing.get(side.partition(":")[0]) is None]


def measure(name: str, options: argparse.Namespace, device: torch.device, deadline: float) -> None:
    """Measure all sides of one network and print a line for each."""
    subject = subject_named(name)
    subject.network.to(device)
    x = subject.image(options.output, device)
    with torch.no_grad():
        expected = run_of(BASELINE, subject.network, device)(x).cpu()
    for side in sides_for(device, options.sides):
        line: dict[str, object] = {"weights": name, "side": side, "output": list(options.output)}
        if time.monotonic() > deadline:
            line["error"] = "left out: the time is over"
        else:
            try:
                line |= measured(subject, side, x, None if side == BASELINE else expected, options.calls)
            except UserError as error:
                line["error"] = str(error)
            except Exception as error:  # a compiler or a driver may raise any exception
                line["error"] = f"{type(error).__name__}: {first_line(error)}"
        say(json.dumps(line))
        sys.stdout.flush()


@exit_status
def main() -> int:
    """Measure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["safmn-x4", "safmn-x2"], metavar="W")
    parser.add_argument("--sides", nargs="+", metavar="BACKEND:PRECISION", help=f"default: {' '.join(SIDES)}")
    parser.add_argument("--output", nargs=2, type=int, default=(720, 1280), metavar=("H", "W"), help="output size")
    parser.add_argument("--calls", type=int, default=50, help="timed calls")
    parser.add_argument("--seconds", type=float, default=120, help="no side begins later")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device; --device cpu tries this script out")
    deadline = time.monotonic() + options.seconds
    for name in options.weights:
        measure(name, options, device, deadline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
