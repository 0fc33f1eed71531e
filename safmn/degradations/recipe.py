"""A recipe: everything that turns one GT image into one LQ image, as plain data with an exact JSON form.

A recipe does not depend on an image: sizes are factors and positions are fractions, so it can be replayed on any image.
``steps`` are applied in order. A recipe stores the seed of noise, not the noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from safmn.errors import DataError

LARGEST_FACTOR = 8  # of one resize and of all together; memory grows with its square
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
    """A blur kernel (Real-ESRGAN, arXiv 2107.10833, section 3.1), built by :func:`safmn.degradations.kernels.weights`.

    Attributes:
        kind: one of the six families, or ``sinc``.
        size: side in pixels, odd.
        sigma_x, sigma_y: standard deviations in pixels before the rotation; equal for the ``iso`` kinds.
        rotation: in radians.
        beta: shape exponent of the generalized and plateau kinds.
        cutoff: for ``sinc``, in radians per pixel, within [0.01, pi].
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
    """Correlate with a kernel. Borders are mirrored without repeating the edge."""

    kernel: Kernel


class Resize(msgspec.Struct, frozen=True, tag_field="op", tag="resize", omit_defaults=True, forbid_unknown_fields=True):
    """Resize by ``factor``, or to ``factor`` times the final LQ size (``of: lq``).

    ``area``, ``bilinear``, ``bicubic`` and ``nearest`` follow :func:`torch.nn.functional.interpolate`, without
    antialiasing except for ``area``. ``lanczos`` (three lobes) and ``matlab_bicubic`` (8-bit) are antialiased.
    """

    mode: ResizeMode
    factor: Annotated[float, Meta(gt=0, le=LARGEST_FACTOR)]
    of: Literal["input", "lq"] = "input"


class GaussianNoise(msgspec.Struct, frozen=True, tag_field="op", tag="gaussian_noise", forbid_unknown_fields=True):
    """Add normal noise with a deviation of ``sigma`` grey levels (0..255), equal in all channels if ``grey``."""

    sigma: Annotated[float, Meta(ge=0, le=LARGEST_SIGMA)]
    grey: bool
    seed: Seed


class PoissonNoise(msgspec.Struct, frozen=True, tag_field="op", tag="poisson_noise", forbid_unknown_fields=True):
    """Add Poisson noise times ``scale``. The number of levels is the image's, rounded up to a power of two."""

    scale: Annotated[float, Meta(ge=0, le=LARGEST_POISSON)]
    grey: bool
    seed: Seed


class SensorNoise(msgspec.Struct, frozen=True, tag_field="op", tag="sensor_noise", forbid_unknown_fields=True):
    """Add normal noise of variance ``shot * x + read**2`` to linear light ``x`` in [0, 1] (display gamma 2.2)."""

    shot: Unit
    read: Unit
    seed: Seed


class Compress(msgspec.Struct, frozen=True, tag_field="op", tag="compress", forbid_unknown_fields=True):
    """Encode and decode. ``diffjpeg`` is BasicSR's ``DiffJPEG`` (no 8-bit rounding), ``jpeg`` a real JPEG codec."""

    codec: Codec
    quality: Quality


class Extra(msgspec.Struct, frozen=True, tag_field="op", tag="extra", forbid_unknown_fields=True):
    """A step registered by name; see :mod:`safmn.degradations.extra_steps`.

    Attributes:
        type: its name in the registry.
        drawn: the values that it drew.
    """

    type: str
    drawn: dict[str, bool | int | float | str]


Step: TypeAlias = Blur | Resize | GaussianNoise | PoissonNoise | SensorNoise | Compress | Extra


class Crop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A square of ``size`` pixels at fractions ``down`` and ``across`` of the possible positions."""

    size: Annotated[int, Meta(ge=1, le=LARGEST_CROP)]
    down: Fraction
    across: Fraction


class Geometry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What training cuts from a GT image.

    The image is flipped left-right (``hflip``), flipped top-bottom (``vflip``) and transposed (``rot90``). Then
    ``crop`` is cut and degraded; a smaller image is mirror-padded. ``patch`` is the part of the crop that is kept, with
    its ``size`` in GT pixels.
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
    """The steps that turn one GT image into one LQ image.

    Attributes:
        scale: GT size / LQ size.
        sharpen: whether to degrade the sharpened GT (USM, see :func:`safmn.degradations.operations.sharpen`) instead of
            the GT.
        steps: the degradation steps, in order. The last resize leads to the LQ size, and no resize makes a side more
            than 8 times as long as the GT's. Clamping and rounding to 8 bits follow.
        geometry: the part of the image that training uses; ignored when a whole image is degraded.
        format: version of the JSON form.
    """

    scale: Annotated[int, Meta(ge=1)]
    sharpen: bool
    steps: tuple[Step, ...]
    geometry: Geometry
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        if self.geometry.patch.size < self.scale:
            raise ValueError(f"a patch of {self.geometry.patch.size} pixels leaves no pixel at scale {self.scale}")
        resizes = [step for step in self.steps if isinstance(step, Resize)]
        if not resizes or (resizes[-1].of, resizes[-1].factor) != ("lq", 1):
            raise ValueError("the last resize of the steps must be to the LQ size (factor 1 of lq)")
        side = 1.0  # relative to the GT's side
        for step in resizes:
            side = step.factor / self.scale if step.of == "lq" else side * step.factor
            if side > LARGEST_FACTOR:
                raise ValueError(f"the steps enlarge the image {side:g} times, more than {LARGEST_FACTOR} times")


def to_json(recipe: Recipe) -> str:
    """Return the recipe as indented JSON text; reading it back gives the same numbers, bit for bit."""
    return msgspec.json.format(msgspec.json.encode(recipe), indent=_JSON_INDENT).decode() + "\n"


def from_json(text: str | bytes, source: str = "the recipe") -> Recipe:
    """Return the recipe that :func:`to_json` wrote.

    Raises:
        DataError: the text is not a recipe; the message names ``source`` and the wrong key.
    """
    try:
        return msgspec.json.decode(text, type=Recipe)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{source} is not a degradation recipe: {error}") from error


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        DataError: the file is not a recipe.
        OSError: the file cannot be read.
    """
    return from_json(Path(path).read_bytes(), str(path))
