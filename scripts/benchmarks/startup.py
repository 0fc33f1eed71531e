"""Measure the CPU seconds (user and system) of starting commands and of upscaling one small image.

    python scripts/benchmarks/startup.py
    python scripts/benchmarks/startup.py --before ../old          # beside another checkout of SAFMN
    python scripts/benchmarks/startup.py --only "--help" --rounds 9

Each command is a process of its own. The sides take turns; the table has medians. ``auto, first run`` has not yet found
out which back end is fastest (the native kernels are compiled); ``auto, later run`` has. Linux and macOS only: Windows
does not tell how much its child processes computed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from measure_upscaling import picture

from safmn.errors import DataError, exit_status
from safmn.imaging import write_image
from safmn.system.console import say, table

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = ((160, 120), (320, 240))
Side = Callable[[], float]


def cpu_seconds(arguments: Sequence[str], checkout: Path, cache: Path, *, status: int = 0) -> float:
    """Run ``safmn`` from a checkout and return the CPU seconds that it and its children took.

    Raises:
        DataError: it ended with another status.
    """
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "safmn", *arguments],
        env=os.environ | {"PYTHONPATH": str(checkout), "SAFMN_CACHE": str(cache)},
        cwd=cache,
        capture_output=True,
        text=True,
    )
    after = os.times()
    if done.returncode != status:
        raise DataError(f"safmn {' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def sides(checkout: Path, folder: Path) -> dict[str, Side]:
    """Return what is measured of a checkout: name -> function that returns CPU seconds."""
    cache = folder / "cache"
    cache.mkdir(parents=True)
    measured: dict[str, Side] = {
        "safmn --help": lambda: cpu_seconds(["--help"], checkout, cache),
        "safmn --version": lambda: cpu_seconds(["--version"], checkout, cache),
        "safmn upscale --help": lambda: cpu_seconds(["upscale", "--help"], checkout, cache),
        "safmn upscal (a mistake)": lambda: cpu_seconds(["upscal"], checkout, cache, status=2),
        "safmn upscale missing.png": lambda: cpu_seconds(
            ["upscale", "missing.png", "-o", "x"], checkout, cache, status=2
        ),
    }
    for width, height in SIZES:
        source = folder / f"{width}x{height}.png"
        write_image(source, picture(width, height))

        def upscale(backend: str, source: Path = source, *, first: bool = False) -> float:
            if first:
                shutil.rmtree(cache / "backends", ignore_errors=True)
            command = ["upscale", str(source), "-o", str(folder / "out.png"), "--overwrite", "--device", "cpu"]
            return cpu_seconds([*command, "--backend", backend], checkout, cache)

        measured |= {
            f"{width}x{height}, eager": lambda run=upscale: run("eager"),  # type: ignore[misc]
            f"{width}x{height}, auto, first run": lambda run=upscale: run("auto", first=True),  # type: ignore[misc]
            f"{width}x{height}, auto, later run": lambda run=upscale: run("auto"),  # type: ignore[misc]
        }
    return measured


def medians(of: dict[str, dict[str, Side]], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median of each side of each checkout; the first round is not counted."""
    seconds: dict[str, dict[str, list[float]]] = {label: {name: [] for name in named} for label, named in of.items()}
    for number in range(rounds + 1):
        for name in next(iter(of.values())):
            for label, named in of.items():
                measured = named[name]()
                if number:
                    seconds[label][name].append(measured)
    return {label: {name: statistics.median(s) for name, s in named.items()} for label, named in seconds.items()}


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout of SAFMN")
    parser.add_argument("--only", metavar="TEXT", help="only sides whose names contain this")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    checkouts = {"before": options.before.resolve()} if options.before else {}
    checkouts["now"] = REPOSITORY
    with tempfile.TemporaryDirectory(prefix="safmn-") as folder:
        found = {
            label: {
                name: side
                for name, side in sides(checkout, Path(folder, label)).items()
                if options.only is None or options.only in name
            }
            for label, checkout in checkouts.items()
        }
        if not found["now"]:
            raise DataError(f"--only {options.only}: no side has this in its name")
        result = medians(found, options.rounds)
    rows = []
    for name, now in result["now"].items():
        eager = result["now"].get(f"{name.split(',')[0]}, eager")
        before = [f"{result['before'][name]:.2f}"] if options.before else []
        rows.append([name, *before, f"{now:.2f}", f"{now / eager:.2f}x" if eager else ""])
    header = ["command", *(["before"] if options.before else []), "now", "now / eager"]
    say("CPU seconds, medians\n")
    say(table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
