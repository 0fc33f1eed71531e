"""A recipe: everything that turns one GT image into one LQ image, as plain data that goes to JSON and back exactly.

A recipe knows no image: sizes are factors and positions are fractions, so it can be replayed on any. Read in order,
``steps`` is the degradation. Noise is not stored but its seed is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from safmn.errors import DataError

LARGEST_FACTOR = 8  # of a resize, and of all together: the square of it is memory
LARGEST_SIGMA = 255  # grey levels
LARGEST_POISSON = 100
LARGEST_CROP = 8192
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Quality = Annotated[int, Meta(ge=1, le=100)]
Positive = Annotated[float, Meta(gt=0)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]

KernelKind = Literal[
    "iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc"
]  # fmt: skip
ResizeMode = Literal["area", "bilinear", "bicubic", "nearest", "lanczos", "matlab_bicubic"]
Codec = Literal["jpeg", "diffjpeg", "webp", "avif"]
RESIZE_MODES: tuple[str, ...] = get_args(ResizeMode)
CODECS: tuple[str, ...] = get_args(Codec)

_JSON_INDENT = 2


class Kernel(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A blur kernel (Real-ESRGAN, arXiv 2107.10833, section 3.1); :func:`safmn.degradations.kernels.weights` makes it.

    Attributes:
        kind: one of the six families, or ``sinc``.
        size: side in pixels, odd.
        sigma_x, sigma_y: standard deviations in pixels before the rotation; equal for the ``iso`` kinds.
        rotation: radians.
        beta: shape exponent of the generalized and plateau kinds.
        cutoff: of ``sinc``, radians per pixel in [0.01, pi].
    """

    kind: KernelKind
    size: Annotated[int, Meta(ge=1, le=99)]
    sigma_x: Positive = 1.0
    sigma_y: Positive = 1.0
    rotation: float = 0.0
    beta: Positive = 1.0
    cutoff: Annotated[float, Meta(ge=0.01, le=3.141592653589794)] = 3.141592653589793

    def __post_init__(self) -> None:
        if self.size % 2 == 0:
            raise ValueError(f"a kernel's size must be odd, got {self.size}")


class Blur(msgspec.Struct, frozen=True, tag_field="op", tag="blur", forbid_unknown_fields=True):
    """Correlate with a kernel; borders are mirrored without repeating the edge."""

    kernel: Kernel


class Resize(msgspec.Struct, frozen=True, tag_field="op", tag="resize", omit_defaults=True, forbid_unknown_fields=True):
    """Change the size: by ``factor``, or to ``factor`` times the size that the LQ image will have.

    ``area``, ``bilinear``, ``bicubic`` and ``nearest`` are those of :func:`torch.nn.functional.interpolate` (no
    antialiasing beyond what ``area`` does); ``lanczos`` (three lobes) and ``matlab_bicubic`` (8-bit) are antialiased.
    """

    mode: ResizeMode
    factor: Annotated[float, Meta(gt=0, le=LARGEST_FACTOR)]
    of: Literal["input", "lq"] = "input"


class GaussianNoise(msgspec.Struct, frozen=True, tag_field="op", tag="gaussian_noise", forbid_unknown_fields=True):
    """Add normal noise of ``sigma`` grey levels (0..255); the same in the three channels where ``grey``."""

    sigma: Annotated[float, Meta(ge=0, le=LARGEST_SIGMA)]
    grey: bool
    seed: Seed


class PoissonNoise(msgspec.Struct, frozen=True, tag_field="op", tag="poisson_noise", forbid_unknown_fields=True):
    """Add ``scale`` times the deviation of a Poisson count with as many levels as the image has (a power of two)."""

    scale: Annotated[float, Meta(ge=0, le=LARGEST_POISSON)]
    grey: bool
    seed: Seed


class SensorNoise(msgspec.Struct, frozen=True, tag_field="op", tag="sensor_noise", forbid_unknown_fields=True):
    """Add normal noise of variance ``shot * x + read**2`` to linear light ``x`` in [0, 1] (display gamma 2.2)."""

    shot: Unit
    read: Unit
    seed: Seed


class Compress(msgspec.Struct, frozen=True, tag_field="op", tag="compress", forbid_unknown_fields=True):
    """Encode and decode. ``diffjpeg`` is BasicSR's ``DiffJPEG`` (no 8-bit rounding), ``jpeg`` the real thing."""

    codec: Codec
    quality: Quality


class Extra(msgspec.Struct, frozen=True, tag_field="op", tag="extra", forbid_unknown_fields=True):
    """A step that is registered by name; see :mod:`safmn.degradations.extra_steps`.

    Attributes:
        type: its name in the registry.
        drawn: what it drew.
    """

    type: str
    drawn: dict[str, bool | int | float | str]


Step: TypeAlias = Blur | Resize | GaussianNoise | PoissonNoise | SensorNoise | Compress | Extra


class Crop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A square of ``size`` pixels at fractions ``down`` and ``across`` of the positions that there are."""

    size: Annotated[int, Meta(ge=1, le=LARGEST_CROP)]
    down: Fraction
    across: Fraction


class Geometry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What training cuts from a GT image: the flips (left-right, top-bottom, transposition), then ``crop`` (padded by
    mirroring where the image is smaller), which is degraded; of the result ``patch`` is kept (``size`` in GT pixels).
    """

    hflip: bool
    vflip: bool
    rot90: bool
    crop: Crop
    patch: Crop

    def __post_init__(self) -> None:
        if self.patch.size > self.crop.size:
            raise ValueError(f"a patch of {self.patch.size} pixels does not fit into a crop of {self.crop.size}")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one GT image becomes one LQ image.

    Attributes:
        scale: GT size over LQ size.
        sharpen: whether the sharpened GT is degraded (USM, see :func:`safmn.degradations.sharpen`), or the GT.
        steps: what happens to it, in order; the last resize leaves it at LQ size, and none makes its sides more than 8
            times those of the GT. Clamping and rounding to 8 bits follow.
        geometry: which part of the image training uses; degrading a whole image leaves it out.
        format: version of this form.
    """

    scale: Annotated[int, Meta(ge=1)]
    sharpen: bool
    steps: tuple[Step, ...]
    geometry: Geometry
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        if self.geometry.patch.size < self.scale:
            raise ValueError(f"a patch of {self.geometry.patch.size} pixels leaves none at scale {self.scale}")
        resizes = [step for step in self.steps if isinstance(step, Resize)]
        if not resizes or (resizes[-1].of, resizes[-1].factor) != ("lq", 1):
            raise ValueError("the last resize of the steps must be to LQ size (factor 1 of lq)")
        side = 1.0  # over that of the GT
        for step in resizes:
            side = step.factor / self.scale if step.of == "lq" else side * step.factor
            if side > LARGEST_FACTOR:
                raise ValueError(f"the steps enlarge the image {side:g} times; {LARGEST_FACTOR} times is the most")


def to_json(recipe: Recipe) -> str:
    """The recipe as indented JSON text; numbers are written so that they come back bit for bit."""
    return msgspec.json.format(msgspec.json.encode(recipe), indent=_JSON_INDENT).decode() + "\n"


def from_json(text: str | bytes, source: str = "the recipe") -> Recipe:
    """The recipe that :func:`to_json` wrote.

    Raises:
        DataError: it is no recipe; names ``source`` and the key that is wrong.
    """
    try:
        return msgspec.json.decode(text, type=Recipe)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{source} is not a degradation recipe: {error}") from error


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        DataError: it is no recipe.
        OSError: it cannot be read.
    """
    return from_json(Path(path).read_bytes(), str(path))
