"""Train SAFMN on photographs from scikit-image, and compare it with bicubic on two held-out photographs.

`make demo` runs this script. An interrupted demo continues where it stopped. At the end it prints a table and the path
of a picture with LQ, bicubic, SAFMN and GT side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installing the package

from safmn import train, weights
from safmn.data import build_dataset
from safmn.errors import exit_status
from safmn.evaluation.bicubic import bicubic
from safmn.evaluation.scoring import evaluate
from safmn.imaging import to_uint8, write_image
from safmn.inference.side_by_side import comparison
from safmn.kernels.cpu.compilation import compiler
from safmn.options import Options, load_options
from safmn.runtime.execution import device_count
from safmn.system.console import say, table
from safmn.training.experiment import Experiment


def scores(options: Options, dataset: Any, networks: dict[str, Callable[[Tensor], Tensor]]) -> str:
    """Return a table of PSNR-Y and SSIM-Y of each network on each held-out photograph.

    Its last column is the gain in PSNR-Y of the last network over the first.
    """
    assert options.val is not None
    results = {
        name: evaluate(network, dataset, name=name, metrics=options.val.metrics, device="cpu", progress=False)
        for name, network in networks.items()
    }
    images = next(iter(results.values())).per_image
    rows = []
    for image in [*images, "mean"]:
        values = [result.mean if image == "mean" else result.per_image[image] for result in results.values()]
        cells = [f"{value['psnr']:.2f} / {value['ssim']:.4f}" for value in values]
        rows.append([image, *cells, f"{values[-1]['psnr'] - values[0]['psnr']:+.2f} dB"])
    return table(["held-out photograph", *(f"{name} PSNR-Y / SSIM-Y" for name in results), "gain"], rows)


def picture(options: Options, dataset: Any, networks: dict[str, Callable[[Tensor], Tensor]]) -> Path:
    """Write LQ, each network's output and GT of the first held-out photograph side by side, and return the file."""
    item = dataset[0]
    lq = item["lq"][None]
    small = to_uint8(item["lq"])  # (h, w, 3); enlarged with nearest neighbour, so that its pixels are visible
    panels = {"LQ": small.repeat(options.scale, axis=0).repeat(options.scale, axis=1)}
    with torch.no_grad():
        panels |= {name: to_uint8(network(lq)[0]) for name, network in networks.items()}
    panels["GT"] = to_uint8(item["gt"])
    path = Path(options.path.results_root or "results") / options.name / "comparison.png"
    write_image(path, comparison(panels))
    return path


def faster_here(options: Options) -> list[str]:
    """Return arguments that train with our kernels in fp32 on a CPU with a compiler; others train as configured.

    The option file's bf16 is slow on CPUs without hardware support for it.
    """
    if device_count() or options.model_type != "SRModel" or compiler() is None:
        return []
    return ["--force_yml", "train:precision=fp32", "train:kernels=native"]


@exit_status
def main() -> int:
    """Train, evaluate and compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", default="options/demo_x4.yml", metavar="FILE", help="option file of the demo")
    arguments = parser.parse_args()
    options = load_options(arguments.opt, mode="train")
    status = train.main(["-opt", arguments.opt, "--auto_resume", *faster_here(options)])
    if status != 0:
        return status
    dataset = build_dataset(options.datasets["val"], phase="val", scale=options.scale)
    ours = weights.load_network(Experiment.of(options).models / "net_g_latest.pth")
    networks = {"bicubic": bicubic(options.scale), "SAFMN": ours}
    say("\n" + scores(options, dataset, networks))
    say(f"\nsee the comparison in {picture(options, dataset, networks)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
