"""Make training pairs with drawings: ``drawings.py PHOTOGRAPHS -o OUTPUT --weights W`` (then ``safmn prepare store``).

Pixel art, text without anti-aliasing and noise have sharper pixels than any image that was shrunk. Networks that were
trained on shrunk photographs only may give them colours far out of range. The drawings have such pixels.

OUTPUT/LR gets the shrunk photographs and ``--drawings`` drawings. OUTPUT/HR gets the photographs, cropped to multiples
of the weights' scale, and the drawings enlarged by the weights. Each enlarged drawing is corrected until it shrinks to
the drawing again. A drawing depends on its number only, so a second run writes the same files.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from augment_photos import link_into
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.errors import DataError, exit_status
from safmn.imaging import imresize, list_images, mod_crop, read_rgb, to_tensor, write_image
from safmn.prepare.parallel import default_jobs, for_each
from safmn.weights import load_network

SIDE = 96  # LR pixels
CORRECTIONS = 20  # more than 20 do not improve the result
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX_SMALL)


def colour(rng: np.random.Generator) -> tuple[int, ...]:
    """Return a random colour: black or white in half of the cases, a saturated one in a quarter, else any."""
    kind = rng.integers(4)
    if kind < 2:
        return (255 * int(rng.integers(2)),) * 3
    channels = 255 * rng.integers(2, size=3) if kind == 2 else rng.integers(256, size=3)
    return tuple(map(int, channels))


def blank(rng: np.random.Generator) -> np.ndarray:
    """Return a background of one random colour, uint8 (SIDE, SIDE, 3), as all drawings are."""
    return np.full((SIDE, SIDE, 3), colour(rng), np.uint8)


def text(rng: np.random.Generator) -> np.ndarray:
    """Draw lines of random letters without anti-aliasing."""
    image, font, size, ink = blank(rng), FONTS[rng.integers(len(FONTS))], rng.uniform(0.3, 1.0), colour(rng)
    for bottom in range(10, SIDE + 10, int(rng.integers(9, 20))):
        letters = "".join(map(chr, rng.integers(33, 127, size=24)))
        left, thick = int(rng.integers(8)), int(rng.integers(1, 3))
        cv2.putText(image, letters, (left, bottom), font, size, ink, thick, cv2.LINE_8)
    return image


def shapes(rng: np.random.Generator) -> np.ndarray:
    """Draw lines, boxes and circles with hard edges."""
    image = blank(rng)
    for _ in range(rng.integers(4, 24)):
        (x, y), (right, bottom) = (tuple(map(int, corner)) for corner in rng.integers(SIDE, size=(2, 2)))
        ink, thick = colour(rng), int(rng.integers(1, 4))
        draw = rng.integers(3)
        if draw == 0:
            cv2.line(image, (x, y), (right, bottom), ink, thick, cv2.LINE_8)
        elif draw == 1:
            cv2.rectangle(image, (x, y), (right, bottom), ink, -1 if rng.integers(2) else thick)
        else:
            cv2.circle(image, (x, y), 1 + right // 4, ink, thick, cv2.LINE_8)
    return image


def pattern(rng: np.random.Generator) -> np.ndarray:
    """Repeat a random tile of two colours, which gives chequers, stripes, dots or dither."""
    height, width = rng.integers(1, 6, size=2)
    tile = rng.integers(2, size=(height + 1, width + 1), dtype=np.uint8)
    cells = np.tile(tile, (SIDE // height + 1, SIDE // width + 1))[:SIDE, :SIDE]
    return np.array([colour(rng), colour(rng)], np.uint8)[cells]


def noise(rng: np.random.Generator) -> np.ndarray:
    """Draw independent grey or coloured pixels with two or all values."""
    size = (SIDE, SIDE, 1 if rng.integers(2) else 3)
    if rng.integers(2):
        pixels = 255 * (rng.random(size) < rng.uniform(0.05, 0.95))
    else:
        pixels = np.clip(rng.normal(rng.uniform(0, 255), rng.uniform(20, 120), size), 0, 255)
    return np.broadcast_to(pixels, (SIDE, SIDE, 3)).astype(np.uint8)


KINDS: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (text, shapes, pattern, noise)


def drawing(number: int) -> np.ndarray:
    """Return the LR drawing with this number, uint8 (SIDE, SIDE, 3)."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([number])))
    return KINDS[number % len(KINDS)](rng)


def enlarged(lr: np.ndarray, network: nn.Module) -> np.ndarray:
    """Return a sharp image that shrinks to ``lr``.

    It is the network's output after iterative back-projection (Irani and Peleg, 1991).

    Args:
        lr: uint8 (h, w, 3).
        network: has an attribute ``scale``.

    Returns:
        The image, uint8 (scale * h, scale * w, 3).
    """
    scale = int(network.scale)  # type: ignore[arg-type]
    wanted = lr / 255
    with torch.inference_mode():
        image = network(to_tensor(lr)[None])[0].clamp(0, 1).permute(1, 2, 0).numpy().astype(np.float64)
    for _ in range(CORRECTIONS):
        image = np.clip(image + imresize(wanted - imresize(image, 1 / scale), scale), 0, 1)
    return (255 * image).round().astype(np.uint8)


def pair_name(item: Path | int) -> str:
    """Return the file name of the HR and LR image of a photograph or of the drawing with a number."""
    return f"{item.stem}.png" if isinstance(item, Path) else f"drawing{item:04}.png"


def write_pair(output: Path, network: nn.Module, item: Path | int) -> tuple[int, int]:
    """Write the HR and LR image of a photograph or of the drawing with a number.

    Returns:
        (1, 0) if the pair was written, (0, 1) if it existed.
    """
    name = pair_name(item)
    lr_path = output / "LR" / name
    if lr_path.exists():
        return 0, 1
    if isinstance(item, Path):
        scale = int(network.scale)  # type: ignore[arg-type]
        whole = read_rgb(item)
        hr = mod_crop(whole, scale)
        lr = imresize(hr, 1 / scale)
        if hr.shape == whole.shape and item.suffix == ".png":
            link_into(output / "HR", item)
        else:
            write_image(output / "HR" / name, hr)
    else:
        lr = drawing(item)
        write_image(output / "HR" / name, enlarged(lr, network))
    write_image(lr_path, lr)  # last, because its existence means that the pair is complete
    return 1, 0


@exit_status
def main() -> int:
    """Write all pairs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write HR and LR to")
    parser.add_argument("--weights", required=True, help="weights to enlarge the drawings; the pairs get their scale")
    parser.add_argument("--drawings", type=int, default=600, help="number of drawings")
    arguments = parser.parse_args()
    items: list[Path | int] = [*list_images(arguments.photographs), *range(arguments.drawings)]
    if twice := [name for name, count in Counter(map(pair_name, items)).items() if count > 1]:
        raise DataError(f"{arguments.photographs}: {twice[0]} would be written twice; rename one of its images.")
    for part in ("HR", "LR"):
        (arguments.output / part).mkdir(parents=True, exist_ok=True)
    work = partial(write_pair, arguments.output, load_network(arguments.weights))
    outcome = for_each(work, items, jobs=default_jobs(), description="pairs")
    return outcome.report(f"{arguments.output}: {arguments.drawings} drawings among {len(items)} pairs")


if __name__ == "__main__":
    sys.exit(main())
