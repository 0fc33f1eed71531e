"""Additional degradation steps: registered by name, listed under ``degradation.extra`` in an option file.

A step is a class with three parts. Its constructor takes the arguments from the option file. ``draw`` draws from the
sample's generator and returns plain values, which are stored in the recipe for replay. ``apply`` degrades an image
using only these values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import cv2
import numpy as np

from safmn.degradations.recipe import Extra, Step
from safmn.errors import DataError, OptionError
from safmn.registry import DEGRADATION_REGISTRY, build, find
from safmn.value_types import Array, Interval

Place = Literal["start", "middle", "end"]
Drawn = dict[str, bool | int | float | str]


class DegradationStep:
    """Base class of a custom degradation step. Register a subclass with ``@DEGRADATION_REGISTRY.register()``.

    Attributes:
        place: the default position: at the ``start``, before the second stage (``middle``), or on the LQ image
            (``end``). The option file can override it.
    """

    place: ClassVar[Place] = "start"

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Return what ``apply`` needs, as plain numbers and strings; draw only from ``rng``."""
        raise NotImplementedError

    @staticmethod
    def apply(image: Array, drawn: Mapping[str, Any]) -> Array:
        """Return a degraded copy of an image: float32 (H, W, 3) RGB in [0, 1], same shape; never in-place."""
        raise NotImplementedError


@dataclass(frozen=True)
class ListedStep:
    """An entry of ``degradation.extra``: a step, its probability and its position."""

    name: str
    step: DegradationStep
    prob: float
    place: Place


def listed_steps(entries: Sequence[Mapping[str, Any]]) -> tuple[ListedStep, ...]:
    """Build the steps listed in ``degradation.extra``.

    Raises:
        OptionError: an entry is wrong; the message names it.
    """
    return tuple(_listed(f"degradation.extra[{index}]", entry) for index, entry in enumerate(entries))


def _listed(where: str, entry: Mapping[str, Any]) -> ListedStep:
    if not isinstance(entry.get("type"), str):
        raise OptionError(f"{where}: the key 'type' is missing; set it to the name of a registered step")
    try:
        step = build(DEGRADATION_REGISTRY, {key: value for key, value in entry.items() if key not in ("prob", "place")})
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from error
    prob, place = entry.get("prob", 1.0), entry.get("place", step.place)
    if isinstance(prob, bool) or not isinstance(prob, (int, float)) or not 0 <= prob <= 1:
        raise OptionError(f"{where}.prob: {prob!r} is not a probability between 0 and 1")
    if place not in get_args(Place):
        raise OptionError(f"{where}.place: {place!r}; choose one of {', '.join(get_args(Place))}")
    return ListedStep(entry["type"], step, float(prob), place)


def draw_extra(listed: Sequence[ListedStep], rng: np.random.Generator) -> dict[Place, list[Step]]:
    """Draw the extra steps of one sample, grouped by position. If none are listed, nothing is drawn."""
    drawn: dict[Place, list[Step]] = {"start": [], "middle": [], "end": []}
    for entry in listed:
        if rng.random() < entry.prob:
            drawn[entry.place].append(Extra(entry.name, entry.step.draw(rng)))
    return drawn


def apply_extra(step: Extra, image: Array) -> Array:
    """Apply an extra step of a recipe.

    Raises:
        OptionError: no step with that name is registered.
        DataError: the step did not return an image of the same shape.
    """
    kind: Any = find(DEGRADATION_REGISTRY, step.type)
    result: Array = kind.apply(image, step.drawn)
    if getattr(result, "shape", None) != image.shape:
        raise DataError(f"the degradation step {step.type} does not return an image of shape {image.shape}")
    return np.ascontiguousarray(result, dtype=np.float32)


@DEGRADATION_REGISTRY.register()
class MotionBlur(DegradationStep):
    """Blur along a straight line, like a moving camera.

    Args:
        length: Range of the line's length in pixels, within 1 to 99.
    """

    def __init__(self, length: Interval = (3, 15)) -> None:
        low, high = length
        if not 1 <= low <= high <= 99:
            raise OptionError(f"length: {list(length)} is not a range [low, high] within 1 to 99")
        self.length = (float(low), float(high))

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw the length in pixels and the angle in radians."""
        return {"length": float(rng.uniform(*self.length)), "angle": float(rng.uniform(0, np.pi))}

    @staticmethod
    def apply(image: Array, drawn: Mapping[str, Any]) -> Array:
        """Correlate with an antialiased line, with mirrored borders."""
        length, angle = float(drawn["length"]), float(drawn["angle"])
        radius = int(np.ceil(length / 2))
        axis = np.arange(-radius, radius + 1)
        along = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
        across = np.cos(angle) * axis[:, None] - np.sin(angle) * axis[None, :]
        kernel = np.clip(1 - np.abs(across), 0, 1) * np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)
        weights = (kernel / kernel.sum()).astype(np.float32)
        return np.asarray(cv2.filter2D(image, -1, weights, borderType=cv2.BORDER_REFLECT_101))
