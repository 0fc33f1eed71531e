"""What the precisions of ONNX files cost and save: PSNR on a benchmark set, size of the file, time.

    python scripts/benchmarks/export_precision.py --set datasets/Set5 safmn-x2 safmn-x4
    python scripts/benchmarks/export_precision.py --set datasets/Set5 --kinds safmn-x2 safmn-x4

The set has the folders HR and LR_bicubic/X2, X3, X4. Files are written by :func:`export_network`, as `safmn export`
does, and run by ONNX Runtime on the CPU with one thread. The time is that of a 128x128 image against float32, the
median of interleaved runs. ``--kinds``: what SAFMN loses when other kinds of convolutions are in 8 bits, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from tabulate import tabulate

import safmn
from safmn.errors import UserError
from safmn.imaging import read_rgb
from safmn.inference.export import export_network, quantize
from safmn.metrics import psnr

PRECISIONS = ("fp32", "fp16", "int8")
ROUNDS = 9


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="PSNR, size and time of ONNX files in each precision.")
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--set", type=Path, required=True, help="folder with HR and LR_bicubic/X2, X3, X4")
    parser.add_argument("--kinds", action="store_true", help="try kinds of layers of SAFMN")
    options = parser.parse_args()
    rows = []
    for weights in options.weights:
        network = safmn.load_network(weights)
        with tempfile.TemporaryDirectory() as folder:
            measured = _kinds if options.kinds else _rows
            rows += measured(Path(weights).stem, network, options.set, Path(folder))
        heads = ["weights", "precision", "PSNR", "lost dB", "kB", "time", "8-bit layers"]
        table = tabulate(rows, ["weights", "in 8 bits", "lost dB"] if options.kinds else heads, "github")
        sys.stdout.write(f"{table}\n\n")
        sys.stdout.flush()
    return 0


def _rows(name: str, network: Any, images: Path, folder: Path) -> list[list[Any]]:
    """A row for each precision."""
    scale = int(network.scale)
    sessions, rows = {}, []
    for precision in PRECISIONS:
        file = folder / f"{precision}.onnx"
        try:
            notes = export_network(network, file, precision=precision).notes
        except UserError as error:
            rows.append([name, precision, "-", "-", "-", "-", str(error)])
            continue
        sessions[precision] = session = _session(file)
        value = _psnr(session, images, scale)
        layers = notes[0].split(" dense")[0] if precision == "int8" else ""
        lost = f"{rows[0][2] - value:.3f}" if rows else ""
        rows.append([name, precision, round(value, 3), lost, round(file.stat().st_size / 1000), "", layers])
    times = _times(sessions)
    for row in rows:
        if row[1] in times:
            row[5] = f"{times[row[1]] / times['fp32']:.2f}"
    return rows


def _kinds(name: str, network: Any, images: Path, folder: Path) -> list[list[Any]]:
    """A row for each choice of kinds."""
    scale = int(network.scale)
    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    export_network(network, source)
    nodes = [node.name for node in onnx.load(source).graph.node if node.op_type == "Conv"]
    dense = [node for node in nodes if node.endswith("ccm.0/Conv")]
    modulation = [node for node in nodes if "/mfr." in node or "/aggr." in node]
    mixing = [node for node in nodes if node.endswith("ccm.2/Conv")]
    first, last = ([node for node in nodes if end in node] for end in ("/to_feat", "/to_img"))
    choices = {
        "dense": dense,
        "dense, depthwise and 1x1 of SAFM": dense + modulation,
        "dense, first": dense + first,
        "dense, last": dense + last,
        "dense, 1x1 of the CCM": dense + mixing,
        "all": nodes,
    }
    best = _psnr(_session(source), images, scale)
    calibration, equal = quantize.calibration_images(scale, None), folder / "equal.onnx"
    quantize.write_equalised(source, equal, dense, calibration)
    trial = quantize.Trial(equal, folder, scale, calibration)
    rows = []
    for kind, layers in choices.items():
        trial.write(layers, target)
        rows.append([name, kind, f"{best - _psnr(_session(target), images, scale):.3f}"])
    return rows


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _psnr(session: onnxruntime.InferenceSession, images: Path, scale: int) -> float:
    """The average PSNR (Y channel, border of ``scale`` cropped), in dB."""
    values = []
    for hr in sorted((images / "HR").glob("*.png")):
        lr = read_rgb(images / "LR_bicubic" / f"X{scale}" / f"{hr.stem}x{scale}.png")
        (made,) = session.run(None, {"input": (lr.astype(np.float32) / 255).transpose(2, 0, 1)[None]})
        image = (made[0].clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
        gt = read_rgb(hr)[: image.shape[0], : image.shape[1]]
        values.append(psnr(image, gt, crop=scale, y=True))
    return float(np.mean(values))


def _times(sessions: dict[str, onnxruntime.InferenceSession]) -> dict[str, float]:
    """The median CPU seconds of each."""
    x = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    seconds: dict[str, list[float]] = {precision: [] for precision in sessions}
    for _ in range(ROUNDS):
        for precision, session in sessions.items():
            start = time.process_time()
            session.run(None, {"input": x})
            seconds[precision].append(time.process_time() - start)
    return {precision: float(np.median(values)) for precision, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
