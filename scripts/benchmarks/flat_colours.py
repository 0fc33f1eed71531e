"""Measure weights on flat colours and drawn graphics: ``scripts/benchmarks/flat_colours.py safmn-x2 FILE.pth ...``

Prints two Markdown tables. The first is for 729 flat colours (nine values per channel). It counts those with a pixel of
the result that deviates by more than 2, 4 and 40 levels, and those with a mean that deviates by more than 2. The areas
are:

- squares of 24 and 48 LR pixels on white and on another colour
- an area from 12 pixels beside the corner of a 96x96 image to the opposite corner
- a whole image of 64x64
- "endless": the output of the network far from any border

The 8 LR pixels along an edge are not examined, since every method has ringing there.

The second table is for drawings with elements of 24, 48 and 96 LR pixels: PSNR on RGB against the HR drawing, also for
MATLAB's bicubic, and the deviation of the pixels in areas of one colour.

The weights are names of ``safmn zoo`` or files. Each takes about a minute on an idle core.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # to run without installing the package

from safmn.data.drawing.shapes import blank, box, disc, grid, half_plane, paint, write
from safmn.errors import exit_status
from safmn.imaging import imresize, write_image
from safmn.inference.upscaler import Upscaler
from safmn.system.console import say
from safmn.training.models.flat_areas import endless, tiles

Array = np.ndarray[Any, np.dtype[Any]]

VALUES = np.rint(np.linspace(0, 255, 9)).astype(np.uint8)
EDGE = 8  # LR pixels along an edge that are not examined
BATCH = 27
SIZES = (24, 48, 96)
# Colours of buttons, headers and status signs in well-known user interfaces.
INTERFACE = ("3370ff", "165dff", "1677ff", "0d6efd", "1a73e8", "00c000", "00ff7f", "dc3545", "ff5722", "673ab7")


def all_colours(values: Array = VALUES) -> Array:
    """Return every combination of n channel values, uint8 (n ** 3, 3)."""
    return np.array(list(itertools.product(values, values, values)), np.uint8)


def of_hex(code: str) -> tuple[int, int, int]:
    """Return red, green and blue of a hexadecimal code: ``"3370ff"`` -> (51, 112, 255)."""
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


# ---- flat colours


def deviations(upscaler: Upscaler, colours: Array, around: Array, before: int, side: int, after: int) -> Array:
    """Return the largest deviation and the deviation of the mean, in levels, of areas of one colour: (n, 2).

    Args:
        upscaler: of any scale.
        colours: colours of the areas, uint8 (n, 3).
        around: colours of the surroundings, uint8 (n, 3).
        before: LR pixels of surroundings before the area, along both axes.
        side: LR pixels of the area, along both axes.
        after: LR pixels of surroundings after the area, along both axes.
    """
    whole, scale, result = before + side + after, upscaler.scale, []
    first, last = (before + EDGE) * scale, (before + side - EDGE) * scale
    for start in range(0, len(colours), BATCH):
        some = colours[start : start + BATCH]
        images = np.repeat(around[start : start + BATCH, None, None], whole, 1).repeat(whole, 2)
        images[:, before : before + side, before : before + side] = some[:, None, None]
        off = upscaler(images)[:, first:last, first:last].astype(np.int64) - some[:, None, None]  # (b, H, W, 3)
        result += zip(np.abs(off).max((1, 2, 3)), np.abs(off.mean((1, 2))).max(1), strict=True)
    return np.array(result, np.float64)


def without_end(network: nn.Module, colours: Array) -> Array:
    """Return the same as :func:`deviations` for the network's output far from any border."""
    tiled, side, result = endless(network), max(8, int(getattr(network, "window", 8))), []
    with torch.inference_mode():
        for some in torch.from_numpy(colours.astype(np.float32)).split(128):
            seen = tiled(tiles(some / 255, side)).clamp(0, 1).mul(255).round()
            off = seen - some[:, :, None, None]
            result.append(torch.stack([off.abs().amax((1, 2, 3)), off.mean((2, 3)).abs().amax(1)], 1))
    return torch.cat(result).numpy()


def areas(upscaler: Upscaler, colours: Array) -> Iterator[tuple[str, Array]]:
    """Yield name and deviations of each kind of area."""
    white = np.full_like(colours, 255)
    other = np.random.Generator(np.random.Philox(7)).permutation(colours)
    for side in SIZES[:2]:
        yield f"{side} on white", deviations(upscaler, colours, white, 12, side, 12)
        yield f"{side} on another", deviations(upscaler, colours, other, 12, side, 12)
    yield "large, from a corner", deviations(upscaler, colours, white, 12, 84, 0)
    yield "whole image", deviations(upscaler, colours, white, 0, 64, 0)
    if hasattr(upscaler.network, "window"):
        yield "endless", without_end(upscaler.network, colours)


def flat_rows(name: str, upscaler: Upscaler, colours: Array) -> Iterator[str]:
    """Yield the rows of the first table."""
    for area, found in areas(upscaler, colours):
        worst = int(found[:, 0].argmax())
        counts = " | ".join(str(int((found[:, 0] > bound).sum())) for bound in (2, 4, 40))
        means = int((found[:, 1] > 2).sum())
        colour = "#" + bytes(colours[worst]).hex()
        yield f"| {name} | {area} | {counts} | {means} | {found[worst, 0]:.0f} ({colour}) |"


# ---- drawings


def _page(unit: int, fill: tuple[int, int, int] = (255, 255, 255)) -> tuple[Array, tuple[Array, Array]]:
    side = max(2 * unit, 12)
    return blank(side, fill), grid(side)


def header(unit: int, ink: tuple[int, int, int]) -> Array:
    """Draw a page with a title in a bar of one colour."""
    image, at = _page(unit)
    paint(image, box(at, -9, -9, len(image) + 18, unit + 9), ink, False)
    write(image, "Menu  Home", unit / 8, unit / 4, unit // 4, (255, 255, 255))
    write(image, "A line of text\nand another", unit / 8, 1.2 * unit, unit // 6, (40, 40, 40))
    return image


def button(unit: int, ink: tuple[int, int, int]) -> Array:
    """Draw a button with round corners and a label."""
    image, at = _page(unit, (245, 245, 245))
    paint(image, box(at, unit / 4, unit / 2, 1.5 * unit, unit, unit / 8), ink)
    write(image, "Send", unit / 2, 0.8 * unit, unit // 3, (255, 255, 255))
    return image


def icon(unit: int, ink: tuple[int, int, int]) -> Array:
    """Draw a disc with a tick."""
    image, at = _page(unit)
    paint(image, disc(at, unit, unit, 0.8 * unit), ink)
    tick = np.rint(np.array([[0.6, 1.0], [0.9, 1.3], [1.5, 0.7]]) * unit * 16).astype(np.int32)
    cv2.polylines(image, [tick], False, (255, 255, 255), max(1, unit // 8), cv2.LINE_AA, 4)
    return image


def letters(unit: int, ink: tuple[int, int, int]) -> Array:
    """Draw black text on a colour."""
    image, _ = _page(unit, ink)
    for line, words in enumerate(("The quick", "brown fox", "jumps over", "a lazy dog")):
        write(image, words, unit / 8, (0.1 + 0.45 * line) * unit, int(unit * 0.3), (0, 0, 0))
    return image


def bars(unit: int, ink: tuple[int, int, int]) -> Array:
    """Draw a chart of three bars with an axis."""
    image, at = _page(unit)
    for bar, height in enumerate((0.8, 1.7, 1.2)):
        paint(image, box(at, round(unit * (0.2 + 0.6 * bar)), round(unit * (1.9 - height)), unit // 2, 2 * unit), ink)
    cv2.line(image, (0, int(1.9 * unit)), (2 * unit, int(1.9 * unit)), (60, 60, 60), 2)
    return image


def edge(unit: int, ink: tuple[int, int, int]) -> Array:
    """Draw two colours with an oblique border."""
    image, _ = _page(unit, ink)
    paint(image, half_plane(len(image), 0.4, 0.0), (ink[1], ink[2], ink[0]))
    return image


def slope(unit: int, ink: tuple[int, int, int]) -> Array:
    """Draw a gradient from the colour to white."""
    way = np.linspace(0, 1, 2 * unit)[:, None, None]
    image = np.array(ink) * (1 - way) + 255 * way + np.zeros((1, 2 * unit, 1))
    return np.rint(image).astype(np.uint8)


def dots(unit: int, ink: tuple[int, int, int]) -> Array:
    """Draw a halftone with cells of a sixth of the unit, at least 8 pixels."""
    image, (x, y) = _page(unit)
    cell = max(unit / 6, 8.0)
    distance = np.hypot(x % cell - cell / 2, y % cell - cell / 2) - 0.6 * cell * (y / len(image))
    paint(image, distance, ink)
    return image


DRAWINGS: tuple[Callable[[int, tuple[int, int, int]], Array], ...] = (
    header,
    button,
    icon,
    letters,
    bars,
    edge,
    slope,
    dots,
)


def in_flat_areas(hr: Array, scale: int) -> Array:
    """Return the pixels with one colour, and without a border of the image, within 6 LR pixels: bool (H, W)."""
    reach = 6 * scale
    kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
    flat = np.zeros(hr.shape[:2], bool)
    inside = slice(reach, -reach)
    flat[inside, inside] = (cv2.dilate(hr, kernel) == cv2.erode(hr, kernel)).all(2)[inside, inside]
    return flat


def psnr(image: Array, hr: Array) -> float:
    """Return the PSNR of RGB in dB."""
    error = float(np.square(image.astype(np.float64) - hr).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def drawing_rows(name: str, upscaler: Upscaler, folder: Path | None) -> Iterator[str]:
    """Yield the rows of the second table: one for each drawing and size, over all colours of :data:`INTERFACE`."""
    for draw, unit in itertools.product(DRAWINGS, SIZES):
        ours, bicubic, largest, off, count = [], [], 0, 0.0, 0
        for code in INTERFACE:
            hr = draw(unit * upscaler.scale, of_hex(code))
            lr = imresize(hr, 1 / upscaler.scale)
            result = upscaler(lr)
            ours.append(psnr(result, hr))
            bicubic.append(psnr(imresize(lr, upscaler.scale), hr))
            flat = in_flat_areas(hr, upscaler.scale)
            wrong = np.abs(result.astype(np.int64) - hr)[flat]
            largest = max(largest, int(wrong.max(initial=0)))
            off, count = off + float(wrong.sum()), count + wrong.size
            if folder:
                write_image(folder / f"{name}_{draw.__name__}_{unit}_{code}.png", result)
        mean = f"{off / count:.2f}" if count else "-"
        yield (
            f"| {name} | {draw.__name__} | {unit} | {np.mean(ours):.2f} | {np.mean(bicubic):.2f} "
            f"| {min(np.array(ours) - bicubic):+.2f} | {largest if count else '-'} | {mean} |"
        )


def make_upscaler(weights: str, arguments: argparse.Namespace) -> Upscaler:
    """Return an upscaler with the options of the command line."""
    options: dict[str, Any] = {"backend": arguments.backend, "device": "cpu"}
    options["guard"] = arguments.guard
    return Upscaler(weights, **options)


@exit_status
def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="names of the zoo, or files")
    parser.add_argument("--backend", default="native", help="as in Upscaler; eager needs no compiler")
    parser.add_argument("--guard", action="store_true", help="measure with the guard, not the weights alone")
    parser.add_argument("--values", type=int, default=len(VALUES), help="values per channel; 9: 729 colours")
    parser.add_argument("--random", type=int, default=0, help="use this number of random colours instead")
    parser.add_argument("--no-drawings", action="store_true", help="print the first table only")
    parser.add_argument("--save", type=Path, help="folder for the upscaled drawings")
    arguments = parser.parse_args()
    colours = all_colours(np.rint(np.linspace(0, 255, arguments.values)).astype(np.uint8))
    if arguments.random:
        colours = np.random.Generator(np.random.Philox(1)).integers(256, size=(arguments.random, 3), dtype=np.uint8)
    upscalers = {Path(name).stem: make_upscaler(name, arguments) for name in arguments.weights}
    say(f"{len(colours)} flat colours:\n\n| weights | area | > 2 | > 4 | > 40 | mean > 2 | worst |")
    say("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for name, upscaler in upscalers.items():
        for row in flat_rows(name, upscaler, colours):
            say(row)
    if arguments.no_drawings:
        return 0
    say("\n| weights | drawing | size | PSNR | bicubic | least gain | off by, at most | in the mean |")
    say("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, upscaler in upscalers.items():
        for row in drawing_rows(name, upscaler, arguments.save):
            say(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
