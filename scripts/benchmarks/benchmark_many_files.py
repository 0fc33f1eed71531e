"""Upscaling a folder: one process for all files against one process for each file, with GNU parallel or xargs.

    python scripts/benchmarks/benchmark_many_files.py [--count 500] [--side 120 360] [--weights safmn-x2]

The files are JPEG crops of scikit-image's photographs, of random sizes within --side (pixels along each side), the
same in each run. Each side of the comparison writes its outputs into an empty folder.

- The first side starts ``safmn upscale FILE`` for each file, as many at a time as there are processors, each with one
  thread. It does a --sample of the files, and its time is scaled to all of them: a process takes a second to start.
- The second side is ``safmn upscale FOLDER``.
- The third side is one process for each processor, with ``--shard I/N``.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from benchmark_harness import argument_parser
from safmn.data.bundled_photos import photo_folder
from safmn.errors import exit_status
from safmn.imaging import read_rgb, write_image
from safmn.system.console import say, table

PHOTOS = ("astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg")
COMMAND = [sys.executable, "-m", "safmn", "upscale"]
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_files(folder: Path, count: int, smallest: int, largest: int) -> list[Path]:
    """Write JPEG crops of random sizes and places, and return their paths."""
    rng, photos = np.random.default_rng(0), [read_rgb(photo_folder() / name) for name in PHOTOS]
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for path in paths:
        photo = photos[rng.integers(len(photos))]
        sides = [min(int(rng.integers(smallest, largest + 1)), side) for side in photo.shape[:2]]
        top, left = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(photo.shape, sides, strict=False))
        write_image(path, photo[top : top + sides[0], left : left + sides[1]])
    return paths


def run(commands: Sequence[Sequence[str]], threads: int | None) -> tuple[float, float]:
    """Run commands at the same time; return the elapsed time and the CPU time of all, in seconds."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    started = [subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL) for line in commands]
    statuses = [process.wait() for process in started]
    if any(statuses):
        sys.exit("a command failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def single_processes(files: Sequence[Path], out: Path, options: Sequence[str]) -> list[str]:
    """Return a command that starts a process for each file, with GNU parallel, or xargs where that is missing."""
    names = [str(file) for file in files]
    line = [*COMMAND, "{}", "-o", str(out), *options]
    if shutil.which("parallel"):
        return ["parallel", "-j", str(PROCESSORS), *line, ":::", *names]
    script = 'printf "%s\\n" "$@" | xargs -P ' + f"{PROCESSORS} -I {{}} " + " ".join(line)
    return ["sh", "-c", script, "sh", *names]


@exit_status
def main() -> int:
    """Measure; return the exit status."""
    parser = argument_parser(__doc__)
    parser.add_argument("--count", type=int, default=500, help="number of files")
    parser.add_argument("--side", type=int, nargs=2, default=(120, 360), help="smallest and largest side in pixels")
    parser.add_argument("--sample", type=int, default=20, help="files for the side with a process each")
    parser.add_argument("--weights", default="safmn-x2")
    arguments = parser.parse_args()
    options = ["--weights", arguments.weights]
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder), Path(folder, "out")
        files = make_files(root / "in", arguments.count, *arguments.side)
        sample = files[:: max(len(files) // arguments.sample, 1)]
        whole = [*COMMAND, str(root / "in"), "-o", str(out), *options]
        shards = [[*whole, "--shard", f"{part}/{PROCESSORS}"] for part in range(1, PROCESSORS + 1)]
        sides: dict[str, tuple[Callable[[], tuple[float, float]], float]] = {
            "a process for each file": (
                lambda: run([single_processes(sample, out, options)], 1),
                len(files) / len(sample),
            ),
            "one process": (lambda: run([whole], arguments.threads), 1),
            "--shard, one for each processor": (lambda: run(shards, 1), 1),
        }
        rows, first = [], None
        for name, (side, scaled) in sides.items():
            taken = []
            for _ in range(arguments.rounds):
                shutil.rmtree(out, ignore_errors=True)
                taken.append([seconds * scaled for seconds in side()])
            elapsed, computed = (sorted(values)[len(values) // 2] for values in zip(*taken, strict=True))
            first = first or elapsed
            rows.append(
                [name, f"{elapsed:.1f}", f"{first / elapsed:.2f}x", f"{computed:.1f}", f"{computed / elapsed:.2f}"]
            )
        say(f"{len(files)} files of {arguments.side[0]} to {arguments.side[1]} pixels, {PROCESSORS} processors")
        say(table(["side", "elapsed s", "speed-up", "CPU s", "busy processors"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
