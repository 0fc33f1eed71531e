"""Choose the images from which a network learns most: ``scripts/zoo/hard_photos.py FOLDER -o OUTPUT --weights W``.

The score of an image is the mean squared error of bicubic minus that of the weights, for the shrunk image enlarged
again. Images that bicubic restores well, and images that the weights cannot restore either (noise, grain), have low
scores: they take as much training time as others, and a network learns little from them. The script links the
``--share`` of the images with the highest scores into OUTPUT, and prints their share of the sum of all scores.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from augment_photos import link_into
from held_out import cut, network_error, squared_error
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.errors import DataError, exit_status
from safmn.imaging import imresize, list_images, read_rgb, to_tensor
from safmn.prepare.parallel import default_jobs, in_order, progress
from safmn.system.console import say
from safmn.weights import load_network


def taken_off(network: nn.Module, hr: np.ndarray) -> float:
    """Return bicubic's mean squared error minus the network's; see :func:`held_out.network_error`."""
    scale = int(network.scale)  # type: ignore[arg-type]
    hr = cut(hr, scale)
    bicubic = imresize(imresize(hr, 1 / scale), scale)
    return squared_error(to_tensor(bicubic), hr, scale) - network_error(network, hr)


def scores(files: list[Path], score: Callable[[np.ndarray], float]) -> list[float]:
    """Return the score of each image; one thread per processor computes them."""
    with contextlib.closing(in_order(lambda path: score(read_rgb(path)), files, default_jobs())) as results:
        return [result() for result in progress(results, len(files), "scores")]


@exit_status
def main() -> int:
    """Compute the scores and link the chosen images; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for links to the chosen images")
    parser.add_argument("--weights", required=True, help="file, or name of the zoo")
    parser.add_argument("--share", type=float, default=0.4, help="share of the images to choose")
    arguments = parser.parse_args()
    if not 0 < arguments.share <= 1:
        parser.error("--share must be above 0 and at most 1")
    files = list_images(arguments.folder)
    known = dict(zip(files, scores(files, partial(taken_off, load_network(arguments.weights))), strict=True))
    best_first = sorted(files, key=lambda path: -known[path])
    chosen = best_first[: max(round(arguments.share * len(files)), 1)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    if others := {path.name for path in arguments.output.iterdir()} - {path.name for path in chosen}:
        raise DataError(
            f"{arguments.output} contains {min(others)}, which is not chosen. Empty it, or name another folder."
        )
    for path in chosen:
        link_into(arguments.output, path)
    held = sum(known[path] for path in chosen) / sum(known.values())
    say(f"{arguments.output}: {len(chosen)} of {len(files)} images, with {held:.0%} of the sum of all scores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
