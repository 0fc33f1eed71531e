"""Train SAFMN on photographs that come with scikit-image, and compare it with bicubic on two that it never saw.

`make demo` runs it. What is done is not done again: an interrupted demo goes on where it stopped. It ends with a table
and the path of a picture that shows LQ, bicubic, ours and GT.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bicubic_baseline import bicubic
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also without the package installed

from safmn import train, weights
from safmn.data import build_dataset
from safmn.errors import exit_status
from safmn.evaluation.scoring import evaluate
from safmn.imaging import to_uint8, write_image
from safmn.inference.side_by_side import comparison
from safmn.kernels.cpu.build import compiler
from safmn.options import Options, load_options
from safmn.system.console import say, table
from safmn.training.experiment import Experiment


def scores(options: Options, dataset: Any, networks: dict[str, Callable[[Tensor], Tensor]]) -> str:
    """A table of the held-out photographs: PSNR-Y and SSIM-Y of each network, and what the last gains on the first."""
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
    """Write LQ, networks and GT of the first held-out photograph side by side; returns the file."""
    item = dataset[0]
    lq = item["lq"][None]
    small = to_uint8(item["lq"])  # (h, w, 3); every pixel becomes a square, so that the panel shows what there is
    panels = {"LQ": small.repeat(options.scale, axis=0).repeat(options.scale, axis=1)}
    with torch.no_grad():
        panels |= {name: to_uint8(network(lq)[0]) for name, network in networks.items()}
    panels["GT"] = to_uint8(item["gt"])
    path = Path(options.path.results_root or "results") / options.name / "comparison.png"
    write_image(path, comparison(panels))
    return path


def faster_here(options: Options) -> list[str]:
    """Arguments that train with our kernels on a CPU with a compiler: bf16 without hardware for it is slow."""
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if gpu or options.model_type != "SRModel" or compiler() is None:
        return []
    return ["--force_yml", "train:precision=fp32", "train:kernels=native"]


@exit_status
def main() -> int:
    """Train, test, compare; returns the exit status."""
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
    say(f"\ncompare with your own eyes: {picture(options, dataset, networks)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
