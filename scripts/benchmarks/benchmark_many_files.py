"""Upscaling a folder: one process for all files against one process for each file, with GNU parallel or xargs.

    python scripts/benchmarks/benchmark_many_files.py                                  # 500 photographs
    python scripts/benchmarks/benchmark_many_files.py --count 5000 --side 64 160       # thumbnails

The files are JPEG crops of photographs (scikit-image's, or those of --photos), of random sizes within --side (pixels
along each side, as far as the photograph is large enough), the same in each run. Each side of the comparison writes its
outputs into an empty folder. Rounds are interleaved.

- "a process for each file" starts ``safmn upscale FILE`` for each file, as many at a time as there are processors, each
  with one thread. It does a --sample of the files, and its time is scaled to all of them.
- "one process" is ``safmn upscale FOLDER``. Small images are computed several at once.
- "one after the other" is the same with nothing computed at once.
- "--shard" is one process for each processor.

"peak MB" is the largest memory of one process; "at once" says how many there are. On a busy machine the CPU time is
more reliable than the elapsed time.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from benchmark_harness import argument_parser
from safmn.data.bundled_photos import photo_folder
from safmn.errors import exit_status
from safmn.imaging import list_images, read_rgb, write_image
from safmn.system.console import say, table

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ("astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg")
COMMAND = [sys.executable, "-m", "safmn", "upscale"]
ONE_BY_ONE = "import safmn.inference.parallel as p; p._SMALL = 0; from safmn.cli.upscale import main; exit(main())"
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
EACH, ALL, SEQUENTIAL, SHARDS = "a process for each file", "one process", "one after the other", "--shard"


class Taken(NamedTuple):
    """What a side took."""

    elapsed: float  # seconds
    computed: float  # seconds of CPU time, of all its processes
    memory: float  # bytes, the peak of its largest process


class Side(NamedTuple):
    """Commands that run at the same time, and the number of processes that there are then."""

    commands: Sequence[Sequence[str]]
    threads: int | None
    at_once: int = 1
    scaled: float = 1.0  # all files per file that it does

    def run(self) -> Taken:
        """Run the commands."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        began, computed, memory = time.perf_counter(), 0.0, 0.0
        started = [subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL) for line in self.commands]
        for process in started:
            _, status, used = os.wait4(process.pid, 0)
            if status:
                sys.exit("a command failed")
            computed += used.ru_utime + used.ru_stime
            memory = max(memory, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        return Taken((time.perf_counter() - began) * self.scaled, computed * self.scaled, memory)


def make_files(folder: Path, count: int, smallest: int, largest: int, photos: Path | None = None) -> list[Path]:
    """Write JPEG crops of random sizes and places, and return their paths.

    Args:
        folder: where they are written.
        count: how many.
        smallest, largest: pixels along each side. Photographs that are too small give smaller ones.
        photos: folder of photographs; None: those that come with scikit-image.
    """
    rng = np.random.default_rng(0)
    sources = [photo_folder() / name for name in PHOTOS] if photos is None else list_images(photos)
    pictures = [read_rgb(source) for source in sources]
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for path in paths:
        photo = pictures[rng.integers(len(pictures))]
        sides = [min(int(rng.integers(smallest, largest + 1)), side) for side in photo.shape[:2]]
        top, left = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(photo.shape, sides, strict=False))
        write_image(path, photo[top : top + sides[0], left : left + sides[1]])
    return paths


def single_processes(files: Sequence[Path], out: Path, options: Sequence[str]) -> list[str]:
    """Return a command that starts a process for each file, with GNU parallel, or xargs where that is missing."""
    names = [str(file) for file in files]
    line = [*COMMAND, "{}", "-o", str(out), *options]
    if shutil.which("parallel"):
        return ["parallel", "-j", str(PROCESSORS), *line, ":::", *names]
    script = 'printf "%s\\n" "$@" | xargs -P ' + f"{PROCESSORS} -I {{}} " + " ".join(line)
    return ["sh", "-c", script, "sh", *names]


def sides_of(
    files: Sequence[Path], out: Path, options: Sequence[str], sample: int, threads: int | None
) -> dict[str, Side]:
    """Return all sides of the comparison."""
    some = files[:: max(len(files) // sample, 1)]
    arguments = [str(files[0].parent), "-o", str(out), *options]
    shards = [[*COMMAND, *arguments, "--shard", f"{part}/{PROCESSORS}"] for part in range(1, PROCESSORS + 1)]
    return {
        EACH: Side([single_processes(some, out, options)], 1, PROCESSORS, len(files) / len(some)),
        SEQUENTIAL: Side([[sys.executable, "-c", ONE_BY_ONE, *arguments]], threads),
        ALL: Side([[*COMMAND, *arguments]], threads),
        SHARDS: Side(shards, 1, PROCESSORS),
    }


@exit_status
def main() -> int:
    """Measure; return the exit status."""
    parser = argument_parser(__doc__)
    parser.set_defaults(rounds=3, warmup=1)
    parser.add_argument("--count", type=int, default=500, help="number of files")
    parser.add_argument("--side", type=int, nargs=2, default=(160, 1200), help="smallest and largest side in pixels")
    parser.add_argument("--photos", type=Path, help="folder of photographs to crop (default: scikit-image's)")
    parser.add_argument("--sample", type=int, default=20, help="files for the side with a process each")
    parser.add_argument("--weights", default="safmn-x2")
    parser.add_argument("--sides", nargs="+", choices=(EACH, SEQUENTIAL, ALL, SHARDS), help="(default: all)")
    arguments = parser.parse_args()
    options = ["--weights", arguments.weights]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        files = make_files(Path(folder, "in"), arguments.count, *arguments.side, photos=arguments.photos)
        sides = sides_of(files, out, options, arguments.sample, arguments.threads)
        sides = {name: sides[name] for name in arguments.sides or sides}
        taken: dict[str, list[Taken]] = {name: [] for name in sides}
        for number in range(arguments.warmup):  # builds the kernels and remembers the back end
            Side([[*COMMAND, str(files[0]), "-o", str(Path(folder, f"warm{number}")), *options]], None).run()
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                shutil.rmtree(out, ignore_errors=True)
                taken[name].append(side.run())
    size = f"{arguments.side[0]} to {arguments.side[1]} pixels"
    say(f"{len(files)} files of {size}, {arguments.weights}, {PROCESSORS} processors, {arguments.rounds} rounds")
    rows, first = [], statistics.median(each.elapsed for each in taken[next(iter(sides))])
    for name, side in sides.items():
        elapsed, computed, memory = (statistics.median(values) for values in zip(*taken[name], strict=True))
        row = [name, f"{len(files) / elapsed:.2f}", f"{elapsed:.1f}", f"{first / elapsed:.2f}x", f"{computed:.1f}"]
        rows.append([*row, f"{computed / elapsed:.2f}", f"{memory / 2**20:.0f}", str(side.at_once)])
    columns = ["files/s", "elapsed s", "speed-up", "CPU s", "busy processors", "peak MB", "at once"]
    say(table(["side", *columns], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
