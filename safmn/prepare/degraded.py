"""The work of ``safmn degrade``: one degraded image, or a contact sheet of several."""

from __future__ import annotations

import argparse
import math

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
from safmn.errors import DataError, OptionError
from safmn.imaging import mod_crop, read_rgb, write_image
from safmn.options import load_options
from safmn.options.datasets import degrades
from safmn.system.console import say_line
from safmn.system.files import write_atomically

_CELL = 192  # minimum side of a picture in the contact sheet; smaller pictures are enlarged
_GAP = 4
_CAPTION = 16  # height in pixels


def one(arguments: argparse.Namespace) -> int:
    """Write the degraded image, and the recipe if it is to be saved, and return the exit status."""
    image = read_rgb(arguments.image)
    recipe = read_recipe(arguments.recipe) if arguments.recipe else _draw(*_options(arguments), arguments)
    write_image(arguments.output, _degrade(recipe, image, arguments))
    if arguments.save_recipe:
        write_atomically(arguments.save_recipe, to_json(recipe))
    say_line(f"{arguments.output}: {_summary(recipe)}")
    return 0


def contact_sheet(arguments: argparse.Namespace, grid: tuple[int, int]) -> int:
    """Write a contact sheet of (columns, rows), print the steps of its pictures and return the exit status."""
    image = read_rgb(arguments.image)
    columns, rows = grid
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


def _options(arguments: argparse.Namespace) -> tuple[DegradationOptions, int]:
    """Return the options for drawing recipes, and the seed."""
    seed = arguments.seed
    if not arguments.opt:
        scale = 4 if arguments.scale is None else arguments.scale
        published = {"gt_usm": True, "gt_size": 64 * scale}
        return parse_options(published, {}, scale=scale), seed or 0
    options = load_options(arguments.opt, mode="train", overrides=arguments.force_yml, tolerant=arguments.tolerant)
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
