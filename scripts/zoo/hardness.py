"""Measure where in a patch store a network learns most: ``scripts/zoo/hardness.py STORE -o FILE --weights W``.

FILE is for ``patch_weights`` of a PatchStore. Each image is divided into cells of about 48x48 LR pixels. The score of a
cell is that of ``hard_photos.py``: bicubic's mean squared error minus that of the weights. Bicubic's error is measured
in every cell. The weights run on one cell of each image only, the one at the upper quartile of bicubic's errors: which
share of the error can be removed is a property of the photograph and its size (grain, focus), and a network is a
hundred times slower. Patches are drawn from a cell in proportion to the root of its score, and to at least ``--least``
times the mean of the roots, so that plain areas stay in. ``--left-out`` is the share of the cells that are never drawn:
those that keep most error although the weights remove less than a tenth of it (grain, noise).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.data.patch_weights import PatchWeights, grid_of
from safmn.data.store_format import StoreFile
from safmn.errors import DataError, exit_status
from safmn.imaging import imresize, to_tensor, to_uint8
from safmn.prepare.parallel import in_order, progress
from safmn.system.console import say
from safmn.weights import load_network

CELL = 48  # LR pixels
RESTORED = 0.1  # share of bicubic's error below which the weights count as unable to restore a cell
Errors = NDArray[np.float64]


def cells_of(height: int, width: int, rows: int, columns: int) -> list[tuple[slice, slice]]:
    """Return the cells of a grid over an image, row by row."""
    down = np.linspace(0, height, rows + 1).round().astype(int)
    across = np.linspace(0, width, columns + 1).round().astype(int)
    return [
        (slice(top, bottom), slice(left, right))
        for top, bottom in itertools.pairwise(down.tolist())
        for left, right in itertools.pairwise(across.tolist())
    ]


def mean_squared(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the mean squared difference of two uint8 images, in units of [0, 1]."""
    return float(cv2.norm(one, other, cv2.NORM_L2SQR)) / (one.size * 255**2)


@torch.no_grad()
def errors(network: nn.Module, store: StoreFile, number: int) -> Errors:
    """Return the mean squared errors of bicubic and of the network for each cell of an image: (2, cells), in [0, 1].

    The network's errors are bicubic's times the share that it leaves of the cell at the upper quartile.
    """
    scale = store.index.source.scale
    lq, gt = (np.ascontiguousarray(image.transpose(1, 2, 0)) for image in (store.lq(number), store.gt(number)))
    rows, columns = grid_of(*lq.shape[:2], CELL)
    enlarged = imresize(lq, scale)
    cells = cells_of(*lq.shape[:2], rows, columns)
    large = [tuple(slice(part.start * scale, part.stop * scale) for part in cell) for cell in cells]
    bicubic = np.array([mean_squared(enlarged[cell], gt[cell]) for cell in large])
    chosen = int(np.argsort(bicubic, kind="stable")[3 * len(bicubic) // 4])
    restored = to_uint8(network(to_tensor(lq[cells[chosen]])[None])[0])
    inside = np.s_[scale:-scale, scale:-scale]  # the network sees nothing beyond the cell
    left, whole = (
        mean_squared(image[inside], gt[large[chosen]][inside]) for image in (restored, enlarged[large[chosen]])
    )
    return np.stack([bicubic, bicubic * (left / whole if whole else 1.0)])


def weights_of(found: Errors, least: float, left_out: float) -> Errors:
    """Return the weight of each cell.

    Args:
        found: (2, cells), errors of bicubic and of the network.
        least: smallest weight, in units of the mean.
        left_out: largest share of the cells that get the weight 0.
    """
    bicubic, network = found
    score = np.sqrt(np.maximum(bicubic - network, 0))
    weights = np.maximum(score, least * score.mean())
    hopeless = np.flatnonzero(network > (1 - RESTORED) * bicubic)
    most = hopeless[np.argsort(-network[hopeless], kind="stable")][: int(left_out * len(network))]
    weights[most] = 0
    return weights


@exit_status
def main() -> int:
    """Measure all images and write the file; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="patch store of LR and HR images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write, .npz")
    parser.add_argument("--weights", required=True, help="file, or name of the zoo, of the store's scale")
    parser.add_argument("--least", type=float, default=0.15, help="smallest weight, in units of the mean")
    parser.add_argument("--left-out", type=float, default=0.03, help="largest share of cells that are never drawn")
    parser.add_argument("--jobs", type=int, default=1, help="images at a time")
    arguments = parser.parse_args()
    store, network = StoreFile(arguments.store), load_network(arguments.weights)
    if store.index.source.gt_alone or store.index.source.scale != int(network.scale):  # type: ignore[arg-type]
        raise DataError(f"{arguments.store} is not a store of pairs for the scale of {arguments.weights}")
    with contextlib.closing(in_order(lambda at: errors(network, store, at), range(len(store)), arguments.jobs)) as work:
        found = np.concatenate([result() for result in progress(work, len(store), "hardness")], axis=1)
    images = store.index.images
    weights = weights_of(found, arguments.least, arguments.left_out)
    sizes = np.array([(image.lq_height, image.lq_width) for image in images], np.int64)
    PatchWeights(CELL, [image.hr.name for image in images], sizes, weights).save(arguments.output)
    order = np.sort(weights)[::-1]
    say(
        f"{arguments.output}: {len(weights)} cells of {len(images)} images; {np.mean(weights == 0):.1%} are left out, "
        f"and a tenth of the cells gets {order[: len(order) // 10].sum() / order.sum():.0%} of the patches"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
