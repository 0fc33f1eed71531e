"""``safmn degrade``: show, save and replay the degradation that real-world training applies to an image."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from safmn.data import SampleKey, sample_rng
from safmn.degradations.apply import Array, apply_recipe, make_pair
from safmn.degradations.draw import draw_recipe
from safmn.degradations.operations import from_uint8
from safmn.degradations.options import DegradationOptions, parse_options
from safmn.degradations.recipe import (
    Blur,
    Compress,
    GaussianNoise,
    PoissonNoise,
    Recipe,
    Resize,
    SensorNoise,
    read_recipe,
    to_json,
)
from safmn.errors import DataError, OptionError, exit_status
from safmn.imaging import mod_crop, read_rgb, write_image
from safmn.options import load_options
from safmn.options.datasets import degrades
from safmn.system.console import ArgumentParser, say_line
from safmn.system.files import write_atomically

_CELL = 192  # minimum side of a picture in the contact sheet; smaller pictures are enlarged
_GAP = 4
_CAPTION = 16  # height in pixels
_MOST = 400  # pictures in a sheet


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    p = ArgumentParser(
        prog="safmn degrade",
        description="Degrade an image as real-world training does. The same seed, epoch and index give the same "
        "degradation as in training; a saved recipe gives the same file, byte for byte.",
    )
    p.add_argument("image", metavar="IMAGE", help="the GT image")
    p.add_argument("-o", "--output", required=True, metavar="OUT", help="the LQ image or the contact sheet (.png)")
    p.add_argument(
        "-opt",
        "--opt",
        metavar="FILE",
        help="training option file (default: Real-ESRGAN's values)",
    )
    p.add_argument("--force_yml", nargs="+", default=[], metavar="A:B=C", help="override options of the file")
    p.add_argument("--scale", type=int, metavar="N", help="GT size / LQ size, without --opt (default: 4)")
    p.add_argument("--seed", type=int, metavar="S", help="default: the option file's manual_seed, or 0")
    p.add_argument("--epoch", type=int, default=0, metavar="E")
    p.add_argument("--index", type=int, default=0, metavar="I", help="index of the (with --grid: first) sample")
    p.add_argument("--recipe", metavar="FILE", help="replay this recipe instead of drawing one")
    p.add_argument("--save-recipe", metavar="FILE", help="write the recipe as JSON")
    p.add_argument("--patch", action="store_true", help="crop and flip as in training, and write the LQ patch")
    p.add_argument(
        "--grid",
        metavar="5x5",
        help="write a contact sheet of columns x rows and print the steps of each index",
    )
    return p


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn degrade`` and return its exit status."""
    arguments = parser().parse_args(argv)
    _check_arguments(arguments)
    _check_files(arguments)
    image = read_rgb(arguments.image)
    if arguments.grid:
        return _contact_sheet(image, arguments)
    recipe = read_recipe(arguments.recipe) if arguments.recipe else _draw(*_options(arguments), arguments)
    write_image(arguments.output, _degrade(recipe, image, arguments))
    if arguments.save_recipe:
        write_atomically(arguments.save_recipe, to_json(recipe))
    say_line(f"{arguments.output}: {_summary(recipe)}")
    return 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    if Path(arguments.output).is_dir():
        raise OptionError(f"-o {arguments.output} is a folder; give a file name, such as {arguments.output}/lq.png")
    for name in ("seed", "epoch", "index"):
        if (getattr(arguments, name) or 0) < 0:
            raise OptionError(f"--{name} {getattr(arguments, name)}: must not be negative")
    if arguments.scale is not None and arguments.scale < 1:
        raise OptionError(f"--scale {arguments.scale}: must be at least 1")
    drawing = [
        name for name in ("opt", "force_yml", "scale", "seed", "epoch", "index", "grid") if getattr(arguments, name)
    ]
    if arguments.recipe and drawing:
        raise OptionError(f"--recipe replays a recipe unchanged: --{drawing[0]} has no effect; remove it")
    if arguments.grid and arguments.save_recipe:
        raise OptionError("--save-recipe saves one recipe; for a picture of the --grid, use its --index without --grid")
    if arguments.opt and arguments.scale:
        raise OptionError(f"--scale: the option file {arguments.opt} sets the scale; change it there")
    if arguments.force_yml and not arguments.opt:
        raise OptionError("--force_yml overrides values of an option file; give the file with --opt")


def _check_files(arguments: argparse.Namespace) -> None:
    """Check that no output file is also an input file or another output file."""
    read = {"IMAGE": arguments.image, "--opt": arguments.opt, "--recipe": arguments.recipe}
    seen = {Path(file).resolve(): option for option, file in read.items() if file}
    for option, file in (("--output", arguments.output), ("--save-recipe", arguments.save_recipe)):
        if file and seen.setdefault(Path(file).resolve(), option) != option:
            raise OptionError(f"{option} {file} is the same file as {seen[Path(file).resolve()]}; choose another name")


def _options(arguments: argparse.Namespace) -> tuple[DegradationOptions, int]:
    """Return the options for drawing recipes, and the seed."""
    seed = arguments.seed
    if not arguments.opt:
        scale = 4 if arguments.scale is None else arguments.scale
        published = {"gt_usm": True, "gt_size": 64 * scale}
        return parse_options(published, {}, scale=scale), seed or 0
    options = load_options(arguments.opt, mode="train", overrides=arguments.force_yml)
    kind = options.datasets["train"]["type"]
    if not degrades(kind):
        raise OptionError(
            f"{arguments.opt}: datasets.train has type {kind}, which does not degrade images; give an option file of "
            "real-world training, with type RealESRGANDataset, or no file for Real-ESRGAN's values"
        )
    try:
        drawn_from = parse_options(options.degradation, options.datasets["train"], scale=options.scale)
    except OptionError as error:
        raise OptionError(f"{arguments.opt}: {error}") from error
    return drawn_from, options.manual_seed if seed is None else seed


def _draw(options: DegradationOptions, seed: int, arguments: argparse.Namespace, offset: int = 0) -> Recipe:
    return draw_recipe(options, sample_rng(seed, SampleKey(arguments.epoch, arguments.index + offset)))


def _degrade(recipe: Recipe, image: Array, arguments: argparse.Namespace) -> Array:
    """Return the LQ image, uint8: of the whole image, or the patch that training would use."""
    height, width = image.shape[:2]
    if arguments.patch:
        lq = make_pair(recipe, image, sharpened=False).lq
    elif min(height, width) < recipe.scale:
        raise DataError(
            f"{arguments.image}: {width}x{height} pixels are too few for scale {recipe.scale}; "
            f"give an image of {recipe.scale}x{recipe.scale} pixels or more, or choose a smaller scale"
        )
    else:
        lq = apply_recipe(recipe, from_uint8(mod_crop(image, recipe.scale)))
    return np.rint(lq * 255).astype(np.uint8)


def _contact_sheet(image: Array, arguments: argparse.Namespace) -> int:
    """Write the contact sheet and print the steps of its pictures."""
    columns, rows = _grid_size(arguments.grid)
    options, seed = _options(arguments)
    recipes = {
        f"index {arguments.index + offset}": _draw(options, seed, arguments, offset) for offset in range(columns * rows)
    }
    pictures = [_captioned(_enlarge(_degrade(recipe, image, arguments)), name) for name, recipe in recipes.items()]
    height, width = pictures[0].shape[:2]
    sheet = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = _GAP + number // columns * (height + _GAP), _GAP + number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    write_image(arguments.output, sheet)
    for name, recipe in recipes.items():
        say_line(f"{name}: {_summary(recipe)}")
    return 0


def _grid_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    columns, rows = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= columns * rows <= _MOST:
        raise OptionError(f"--grid {text}: give columns x rows, such as 5x5, with at most {_MOST} pictures")
    return columns, rows


def _enlarge(picture: Array) -> Array:
    """Repeat pixels until the picture is large enough to view."""
    factor = math.ceil(_CELL / min(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _captioned(picture: Array, text: str) -> Array:
    caption = np.full((_CAPTION, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(caption, text, (2, _CAPTION - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([picture, caption])


def _summary(recipe: Recipe) -> str:
    """Return the steps in one line."""
    texts = []
    for step in recipe.steps:
        match step:
            case Blur(kernel):
                texts.append(f"{kernel.kind} blur {kernel.size}")
            case Resize(mode, factor, of):
                texts.append(f"{mode} x{factor:.2f}" + (" of LQ size" if of == "lq" else ""))
            case GaussianNoise(sigma, grey):
                texts.append(f"{'grey ' if grey else ''}noise {sigma:.1f}")
            case PoissonNoise(scale, grey):
                texts.append(f"{'grey ' if grey else ''}Poisson noise x{scale:.2f}")
            case SensorNoise():
                texts.append("sensor noise")
            case Compress(codec, quality):
                texts.append(f"{codec} {quality}")
    return ", ".join(["sharpen", *texts] if recipe.sharpen else texts)
