"""Measure the cost of upscaling large frames: peak memory of the process, and arithmetic that tiles repeat.

    python scripts/benchmarks/measure_upscaling.py memory                  # x2 from 3840x2160 with --tile auto
    python scripts/benchmarks/measure_upscaling.py memory --weights safmn-x4 --sizes 1920x1080 3840x2160
    python scripts/benchmarks/measure_upscaling.py overhead                # exact counts for a frame of 3840x2160
    python scripts/benchmarks/measure_upscaling.py overhead --time --sizes 512x384 --tiles auto 128 64

Memory is the peak resident memory (on Linux) of a separate ``safmn upscale`` process, which reads a PNG and writes a
PNG.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmark_harness import compare, use_threads
from safmn import Upscaler
from safmn.archs.stages import stages_of
from safmn.errors import DataError, exit_status
from safmn.imaging import write_image
from safmn.inference import tiling
from safmn.inference.streaming import STREAMING_BASE, bytes_per_column
from safmn.inference.tiling import TiledFrame, TileSize
from safmn.system.console import say, table

_CHILD = """
import sys
from safmn.cli import main
status = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""


def picture(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a smooth picture with some noise, uint8 (height, width, 3)."""
    generator = np.random.default_rng(0)
    waves = np.sin(np.arange(width) / 40)[None, :, None] + np.cos(np.arange(height) / 30)[:, None, None]
    noise = generator.integers(-8, 9, (height, width, 3), dtype=np.int16)
    return np.clip(waves.astype(np.float32) * 60 + 128 + noise, 0, 255).astype(np.uint8)


def measure_memory(weights: str, backend: str, width: int, height: int) -> list[str]:
    """Upscale one picture in a separate process and return its row of the table.

    Raises:
        DataError: ``safmn upscale`` failed.
    """
    scale = Upscaler(weights, device="cpu").scale
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.png"), Path(folder, "out.png")
        write_image(source, picture(width, height))
        command = ["upscale", str(source), "-o", str(target), "--weights", weights, "--backend", backend]
        start = time.perf_counter()
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, *command, "--device", "cpu"], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
    if child.returncode:
        raise DataError(f"safmn upscale failed:\n{child.stdout}{child.stderr}")
    peak = int(child.stdout.split()[-1]) / 2**20  # KiB to GiB
    images = 3 * width * height * (1 + scale**2) / 2**30
    sizes = [f"{width}x{height}", f"{width * scale}x{height * scale}"]
    return [*sizes, f"{images:.2f}", f"{peak:.2f}", f"{peak - images:.2f}", f"{seconds:.0f}"]


def counted(frame: TiledFrame, network: Any, cut: TileSize) -> int:
    """Return the multiply-adds for upscaling a frame of meta tensors (without data), cut as in ``cut``."""
    if cut.covers(frame):
        return _counted(lambda: tiling.run_whole(frame, network, lambda part: None))
    lefts = range(0, frame.width, cut.width)
    counts = {left: _counted_strip(frame, network, left, cut) for left in {lefts[0], lefts[1 % len(lefts)], lefts[-1]}}
    return sum(counts.get(left, counts[lefts[1 % len(lefts)]]) for left in lefts)  # all inner strips cost the same


def _counted(run: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops()) // 2


def _counted_strip(frame: TiledFrame, network: Any, left: int, cut: TileSize) -> int:
    chain = stages_of(network)
    assert chain is not None
    right = min(left + cut.width, frame.width)
    sizes = {"halo": network.halo, "window": network.window, "rows": cut.rows}
    return _counted(lambda: tiling.run_strip(frame, chain, left, right, **sizes, progress=lambda part: None))


def naive_overhead(frame: TiledFrame, halo: int, tile: int) -> float:
    """Return the ratio of the pixels of square tiles, each with its halo, to the pixels of the frame."""
    return float(np.prod([_covered(side, tile, halo) / side for side in (frame.width, frame.height)]))


def _covered(length: int, tile: int, halo: int) -> int:
    """Return the sum of the lengths of all tiles with their halos."""
    return sum(min(start + tile + halo, length) - max(start - halo, 0) for start in range(0, length, tile))


def overhead_rows(weights: str, width: int, height: int, tiles: Sequence[str]) -> list[list[str]]:
    """Return a row for each setting of ``--tile``: how the frame is cut, memory, and additional multiply-adds.

    Raises:
        DataError: tiles of the network are not exact.
    """
    upscaler = Upscaler(weights, device="cpu")
    network: Any = upscaler.network
    chain = stages_of(network)
    if chain is None:
        raise DataError(f"{weights}: tiles of {type(network).__name__} are not exact, so they cannot be counted")
    blanks = [torch.empty(1, 3, height * k, width * k, dtype=torch.uint8, device="meta") for k in (1, network.scale)]
    frame = TiledFrame(*blanks, network.scale, network.window, torch.device("meta"))
    network = copy.deepcopy(network).to("meta")
    whole = counted(frame, network, TileSize(frame.width, frame.height))
    rows = []
    for tile in tiles:
        upscaler.tile = "auto" if tile == "auto" else int(tile)
        cut = upscaler.cut(frame)
        extra = counted(frame, network, cut) / whole - 1
        columns = min(cut.width + 2 * network.halo, frame.width)
        needed = (STREAMING_BASE + columns * bytes_per_column(chain, cut.rows)) / 2**20
        naive = naive_overhead(frame, network.halo, cut.width) - 1 if cut.width < frame.width else 0.0
        streamed = not cut.covers(frame)
        cells = [f"{cut.width} columns, bands of {cut.rows}", f"{needed:.0f}"] if streamed else ["no", "-"]
        rows.append([tile, *cells, f"{extra:.1%}", f"{naive:.0%}"])
    return rows


def timed_rows(weights: str, width: int, height: int, tiles: Sequence[str], rounds: int) -> list[list[str]]:
    """Return a row per setting of ``--tile``: the seconds, and their ratio to those without tiles (eager)."""
    image = picture(width, height)
    sides = {
        tile: Upscaler(weights, device="cpu", backend="eager", tile="auto" if tile == "auto" else int(tile))
        for tile in ("0", *tiles)
    }
    timings = compare({tile: lambda side=side: side(image) for tile, side in sides.items()}, rounds=rounds, warmup=1)
    whole = timings["0"].median
    return [[tile, f"{t.median:.2f}", f"{t.median / whole:.2f}x", f"{t.spread:.0%}"] for tile, t in timings.items()]


def _size(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in text.split("x"))
    return width, height


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "overhead"))
    parser.add_argument("--weights", default="safmn-x2", help="a file, or a name of `safmn zoo`")
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(3840, 2160)], metavar="WxH", help="input sizes")
    parser.add_argument("--tiles", nargs="+", default=["auto", "1024", "512", "256", "128"], help="settings of --tile")
    parser.add_argument("--backend", default="auto", help="memory: as in safmn upscale")
    parser.add_argument("--time", action="store_true", help="overhead: measure time instead of counting")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args(argv)
    use_threads(options.threads)
    if options.what == "memory":
        rows = [measure_memory(options.weights, options.backend, *size) for size in options.sizes]
        say(table(["input", "output", "both (GiB)", "peak RSS (GiB)", "peak less both", "seconds"], rows))
        return 0
    for width, height in options.sizes:
        say(f"\n{options.weights}, frame of {width}x{height}\n")
        if options.time:
            rows = timed_rows(options.weights, width, height, options.tiles, options.rounds)
            say(table(["--tile", "seconds", "ratio", "spread"], rows))
        else:
            rows = overhead_rows(options.weights, width, height, options.tiles)
            header = ["--tile", "strips", "features (MiB)", "extra arithmetic", "with tiles of the whole network"]
            say(table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
