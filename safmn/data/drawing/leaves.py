"""Dead leaves with textures: shapes of all sizes that hide one another.

Photographs consist of objects of which each hides what is behind it. Images of random shapes with sizes by a power law
have the same statistics of contrast, edges and scales (Lee, Mumford and Huang, "Occlusion models for natural images",
IJCV 2001). Textures in the shapes, and a lack of focus, come from VibrantLeaves (arXiv 2504.10201); the code is ours.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from safmn.data.drawing.fields import Field, cloud, natural_colours, shrunk, waves
from safmn.value_types import Array

_POWER = 3.0  # of the density of radii; 3 makes the images independent of scale
_POINTS = 24  # corners of a round shape


def _radii(rng: np.random.Generator, count: int, low: float, high: float) -> NDArray[np.float64]:
    """Draw radii between ``low`` and ``high`` whose density falls with the third power."""
    share = rng.random(count)
    first, last = low ** (1 - _POWER), high ** (1 - _POWER)
    return (first + share * (last - first)) ** (1 / (1 - _POWER))


def _outlines(rng: np.random.Generator, radii: NDArray[np.float64], side: int) -> list[NDArray[np.int32]]:
    """Draw one closed outline per radius, in sixteenths of a pixel: polygons, ellipses, stars and wavy blobs."""
    count = len(radii)
    centres = rng.uniform(0, side, (count, 1, 2))
    corners = rng.choice([3, 4, 4, 5, 6, _POINTS, _POINTS, _POINTS], size=count)
    stretch = np.exp(rng.normal(0, 0.5, count))
    tilt, wave, lobes = rng.uniform(0, 2 * math.pi, count), rng.uniform(0, 0.5, count), rng.integers(2, 9, count)
    outlines = []
    for number in range(count):
        turns = np.linspace(0, 2 * math.pi, int(corners[number]), endpoint=False)
        reach = radii[number] * (1 + wave[number] * np.sin(lobes[number] * turns)) if len(turns) == _POINTS else None
        reach = np.full(len(turns), radii[number]) if reach is None else reach
        points = np.stack([reach * np.cos(turns) * stretch[number], reach * np.sin(turns)], axis=1)
        cosine, sine = math.cos(tilt[number]), math.sin(tilt[number])
        points = points @ np.array([[cosine, sine], [-sine, cosine]]) + centres[number]
        outlines.append(np.rint(points * 16).astype(np.int32))
    return outlines


def _textures(rng: np.random.Generator, side: int) -> list[Field]:
    """Draw the textures of one image, float32 (side, side) in [-1, 1]; the first one is plain."""
    soft = cloud(rng, side, float(rng.uniform(1.2, 2.2)))
    rough = cloud(rng, side, float(rng.uniform(0.3, 1.2)))
    blobs = np.tanh(soft.T * np.float32(rng.uniform(4, 30)))
    return [np.zeros_like(soft), soft, rough, blobs, waves(rng, side, soft), waves(rng, side, soft)]


def leaves(rng: np.random.Generator, side: int) -> Array:
    """Draw dead leaves: textured shapes of all sizes, the later ones in front of the earlier ones."""
    large = 2 * side
    low, high = float(rng.uniform(3, 12)), float(rng.uniform(0.15, 0.6)) * large
    count = int(np.clip(1.5 * (large / low) ** 2 / (2 * math.pi * math.log(high / low)), 40, 600))
    layers = np.zeros((large, large), np.float32)  # number of the shape that is seen
    for number, outline in enumerate(_outlines(rng, _radii(rng, count, low, high), large), start=1):
        cv2.fillPoly(layers, [outline], number, cv2.LINE_8, 4)
    seen = layers.astype(np.int32)
    colours = natural_colours(rng, count + 1)
    textures = np.stack(_textures(rng, large))
    shares = rng.dirichlet(np.full(len(textures), 0.5))
    kind = rng.choice(len(textures), size=count + 1, p=shares).astype(np.int32)
    height = (rng.uniform(0, 60, count + 1) * rng.choice([-1, 1], count + 1)).astype(np.float32)
    values = np.take_along_axis(textures, kind[seen][None], axis=0)[0] * height[seen]
    tint = rng.uniform(0.6, 1.4, 3).astype(np.float32)
    image = colours[seen] + values[..., None] * tint
    if rng.random() < 0.25:  # what lies behind is out of focus
        blurred = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(1.0, 6.0)))
        behind = (seen < rng.uniform(0.3, 0.9) * count).astype(np.float32)[..., None]
        image = image + behind * (blurred - image)
    return shrunk(image, side)
