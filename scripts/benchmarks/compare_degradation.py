"""Compare the distribution of our degradations with BasicSR's, with the same options and GT images.

    python scripts/benchmarks/compare_degradation.py --photos DIR [--draws 2000] [--side 192] [--codec jpeg]

For every statistic, the script prints the mean on both sides and the Kolmogorov-Smirnov distance between the two
samples. Two samples of one distribution exceed a distance of 1.95 * sqrt(2 / draws) (0.062 for 2,000) once in 1000
times. The exit status is 1 if a distance is larger. Of our kernels, 20 times as many are drawn, with a smaller bound.

BasicSR compresses with DiffJPEG, which differs from JPEG. ``--codec diffjpeg`` uses it on both sides; ``--codec jpeg``
shows the effect of libjpeg.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp

import basicsr_degradation
from safmn.data import SampleKey, sample_rng
from safmn.degradations import DegradationOptions, apply_recipe, draw_recipe, kernels, parse_options
from safmn.degradations.apply import stages
from safmn.degradations.recipe import Blur, Compress, GaussianNoise, Kernel, PoissonNoise
from safmn.errors import exit_status
from safmn.imaging import list_images, read_rgb
from safmn.system.console import say, table

SCALE = 4
CENTRE = 10  # of BasicSR's kernels, all padded to 21x21
BANDS = ((0.0, 0.25), (0.25, 0.5), (0.5, 1.0))  # of the Nyquist frequency
FALSE_ALARM = 1.95  # factor of the Kolmogorov-Smirnov bound for a false alarm in 1 of 1000 cases

Array = np.ndarray[Any, np.dtype[Any]]
Statistics = dict[str, list[float]]


def our_options(codec: str = "diffjpeg", **changes: Any) -> DegradationOptions:
    """Return our options with the published values."""
    extras = {"gt_size": SCALE, "codec_list": [codec], **changes}
    return parse_options({**basicsr_degradation.PUBLISHED, **extras}, basicsr_degradation.PUBLISHED_BLUR, scale=SCALE)


def kernel_statistics(weights: Array, name: str, into: Statistics) -> None:
    """Append a kernel's second moment, anisotropy and sum of negative weights."""
    axis = np.arange(len(weights)) - len(weights) // 2
    x, y = np.meshgrid(axis, axis)
    xx, yy, xy = ((weights * product).sum() for product in (x * x, y * y, x * y))
    moments = (xx + yy, np.hypot(xx - yy, 2 * xy), -weights[weights < 0].sum())
    for statistic, value in zip(("second moment", "anisotropy", "negative part"), moments, strict=True):
        into[f"{name}: {statistic}"].append(round(float(value), 4))  # BasicSR's kernels are single precision


def image_statistics(lq: Array, into: Statistics) -> None:
    """Append mean, standard deviation and power in three frequency bands of an LQ image, (H, W, 3) in [0, 1]."""
    into["LQ: mean"].append(float(lq.mean()))
    into["LQ: standard deviation"].append(float(lq.std()))
    grey = lq.mean(axis=2)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2 / grey.size
    frequency = np.hypot(*np.meshgrid(*(2 * np.abs(np.fft.fftfreq(side)) for side in grey.shape[::-1])))
    for low, high in BANDS:
        inside = (frequency > low) & (frequency <= high)
        into[f"LQ: log power, {low:g} to {high:g}"].append(math.log10(power[inside].mean() + 1e-9))


def step_statistics(name: str, before: Array, after: Array, into: Statistics) -> None:
    """Append the change by a noise or JPEG step, in grey levels, and, for the first noise step, the image width."""
    into[f"{name}: change"].append(float((after - before).std() * 255))
    if name == "noise 1":
        into["size after stage 1's resize"].append(float(after.shape[-2] if after.shape[-1] == 3 else after.shape[-1]))


def their_kernels(dataset: Any, count: int) -> Statistics:
    """Return the statistics of ``count`` samples' kernels from BasicSR's data set."""
    found: Statistics = defaultdict(list)
    for number in range(count):
        item = dataset[number % len(dataset)]
        for key, name in (("kernel1", "kernel 1"), ("kernel2", "kernel 2"), ("sinc_kernel", "final sinc")):
            kernel_statistics(item[key].numpy().astype(np.float64), name, found)
    return found


def our_kernels(count: int) -> Statistics:
    """Return the statistics of the kernels of ``count`` of our recipes.

    A recipe without a final sinc counts with the identity kernel, as in BasicSR's data set.
    """
    found: Statistics = defaultdict(list)
    options = our_options(second_blur_prob=1)
    for number in range(count):
        recipe = draw_recipe(options, sample_rng(1, SampleKey(0, number)))
        blurs = [step.kernel for step in recipe.steps if isinstance(step, Blur)]
        final = blurs.pop() if len(blurs) > 2 else Kernel("iso", 1)
        for name, kernel in zip(("kernel 1", "kernel 2", "final sinc"), (*blurs, final), strict=True):
            kernel_statistics(kernels.weights(kernel), name, found)
    return found


def their_images(dataset: Any, gts: Sequence[Array], count: int) -> Statistics:
    """Return the statistics of ``count`` LQ images that BasicSR makes from the GT images."""
    found: Statistics = defaultdict(list)
    side = gts[0].shape[0]
    model = basicsr_degradation.model(scale=SCALE, gt_size=side, queue_size=1)
    model._dequeue_and_enqueue = lambda: None
    order: dict[str, int] = {}

    def seen(name: str, before: torch.Tensor, after: torch.Tensor) -> None:
        order[name] = order.get(name, 0) + 1
        step_statistics(f"{name} {order[name]}", before[0].numpy(), after[0].numpy(), found)

    with basicsr_degradation.on_cpu(), basicsr_degradation.watch_stages(seen, model):
        for number in range(count):
            order.clear()
            item = dataset[number % len(dataset)]
            item["gt"] = torch.from_numpy(gts[number % len(gts)].transpose(2, 0, 1).copy())
            batch = {key: value[None] for key, value in item.items() if isinstance(value, torch.Tensor)}
            model.feed_data(batch)
            image_statistics(model.lq[0].permute(1, 2, 0).numpy(), found)
    return found


def our_images(options: DegradationOptions, gts: Sequence[Array], count: int) -> Statistics:
    """Return the statistics of ``count`` LQ images that our recipes make from the GT images."""
    found: Statistics = defaultdict(list)
    for number in range(count):
        gt = gts[number % len(gts)]
        recipe = draw_recipe(options, sample_rng(0, SampleKey(0, number)))
        before, order = gt, {"noise": 0, "jpeg": 0}
        for step, after in stages(recipe, gt):
            name = "noise" if isinstance(step, (GaussianNoise, PoissonNoise)) else "jpeg"
            if isinstance(step, (GaussianNoise, PoissonNoise, Compress)):
                order[name] += 1
                step_statistics(
                    f"{name} {order[name]}", np.clip(before, 0, 1) if name == "jpeg" else before, after, found
                )
            before = after
        image_statistics(apply_recipe(recipe, gt), found)
    return found


def compare(
    theirs: Mapping[str, Sequence[float]], ours: Mapping[str, Sequence[float]]
) -> list[tuple[str, float, float, float, float]]:
    """Return, for every statistic, its name, both means, the distance, and the bound of 1 false alarm in 1000."""
    rows = []
    for name in theirs:
        distance = float(ks_2samp(theirs[name], ours[name]).statistic)
        bound = FALSE_ALARM * math.sqrt(1 / len(theirs[name]) + 1 / len(ours[name]))
        rows.append((name, float(np.mean(theirs[name])), float(np.mean(ours[name])), distance, bound))
    return rows


def gt_images(photos: Path, side: int, count: int) -> list[Array]:
    """Return the centres of the first ``count`` images, float32 (side, side, 3) in [0, 1]."""
    images = []
    for path in list_images(photos)[:count]:
        image = read_rgb(path)
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        images.append(image[top : top + side, left : left + side].astype(np.float32) / 255)
    return images


@exit_status
def main() -> int:
    """Print the comparison, and return the exit status: 1 if a distance is larger than its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of images")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--side", type=int, default=192, help="of the GT image (default: 192)")
    parser.add_argument("--codec", choices=("jpeg", "diffjpeg"), default="diffjpeg")
    arguments = parser.parse_args()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    gts = gt_images(arguments.photos, arguments.side, 100)
    options = our_options(arguments.codec)
    with tempfile.TemporaryDirectory() as folder:
        names = [path.name for path in list_images(arguments.photos)][:100]
        dataset = basicsr_degradation.dataset(arguments.photos, names, Path(folder) / "meta_info.txt")
        rows = compare(their_kernels(dataset, arguments.draws), our_kernels(20 * arguments.draws))
        rows += compare(their_images(dataset, gts, arguments.draws), our_images(options, gts, arguments.draws))
    say(f"{arguments.draws} draws, GT {arguments.side}x{arguments.side}, ours with {arguments.codec}\n")
    shown = [[name, f"{a:.4g}", f"{b:.4g}", f"{d:.3f}", f"{bound:.3f}"] for name, a, b, d, bound in rows]
    say(table(["statistic", "BasicSR", "ours", "distance", "chance"], shown))
    return int(any(distance > bound for *_, distance, bound in rows))


if __name__ == "__main__":
    sys.exit(main())
