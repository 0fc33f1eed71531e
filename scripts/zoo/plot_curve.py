"""Plot the losses and validation results of a run: ``plot_curve.py experiments/X/record.jsonl -o curve.png``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(record: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the logged losses and the validation results of a run, in order."""
    entries = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if "lr" in entry], [entry for entry in entries if "set" in entry]


def draw(
    record: Path, title: str, lines: dict[str, float], lowest: float | None, start: dict[str, float] | None = None
) -> plt.Figure:
    """Return a figure with the losses on the left, and PSNR with dashed lines for reference values on the right.

    Args:
        start: name of a validation set -> PSNR of the initial weights. If given, only these sets are drawn, as the
            difference to it.
    """
    losses, validations = read(record)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(title)
    for name in [key for key in losses[0] if key.startswith("l_")]:
        left.plot([entry["iter"] for entry in losses], [entry[name] for entry in losses], label=name, linewidth=1)
    left.set(xlabel="iteration", ylabel="loss", yscale="log")
    left.legend()
    for name in start or dict.fromkeys(entry["set"] for entry in validations):
        points = [(entry["iter"], entry["psnr"]) for entry in validations if entry["set"] == name]
        if start:
            points = [(0, 0.0), *((iteration, psnr - start[name]) for iteration, psnr in points)]
        right.plot(*zip(*points, strict=True), marker=".", label=name if start else f"{name}, average")
    for name, value in lines.items():
        right.axhline(value, linestyle="--", linewidth=1, color="grey")
        right.annotate(f"{name} {value:.2f}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    right.set(xlabel="iteration", ylabel="PSNR-Y beyond the initial weights, dB" if start else "PSNR-Y, dB")
    right.set_ylim(bottom=lowest)
    right.legend(loc="best" if start else "lower right")
    return figure


def main() -> None:
    """Read the record and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--title", default="")
    parser.add_argument(
        "--line", nargs=2, action="append", default=[], metavar=("NAME", "PSNR"), help="reference value"
    )
    parser.add_argument("--lowest", type=float, help="bottom of the PSNR axis")
    parser.add_argument(
        "--start", nargs=2, action="append", default=[], metavar=("SET", "PSNR"), help="draw the difference to it"
    )
    arguments = parser.parse_args()
    start = {name: float(value) for name, value in arguments.start}
    lines = {name: float(value) for name, value in arguments.line}
    draw(arguments.record, arguments.title, lines, arguments.lowest, start).savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
