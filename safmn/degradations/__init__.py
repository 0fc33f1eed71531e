"""High-order degradation (Real-ESRGAN, arXiv 2107.10833): draw a recipe, apply it, replay it.

::

    options = parse_options(degradation, dataset, scale=4)
    recipe = draw_recipe(options, rng)  # plain data
    lq = apply_recipe(recipe, gt)  # float32 arrays (H, W, 3) in [0, 1]
"""

from __future__ import annotations

from safmn.degradations.apply import DegradedPair, apply_recipe, make_pair
from safmn.degradations.draw import draw_recipe
from safmn.degradations.options import DegradationOptions, parse_options
from safmn.degradations.recipe import Recipe, from_json, read_recipe, to_json

__all__ = [
    "DegradationOptions",
    "DegradedPair",
    "Recipe",
    "apply_recipe",
    "draw_recipe",
    "from_json",
    "make_pair",
    "parse_options",
    "read_recipe",
    "to_json",
]
