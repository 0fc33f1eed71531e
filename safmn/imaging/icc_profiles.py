"""Colour profiles (ICC): pixels through one to sRGB, and a profile made from chromaticities and a curve."""

from __future__ import annotations

import functools

import imagecodecs
import numpy as np

from safmn.value_types import Array

SPACES = {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4, b"Lab ": 3}
"""Colour spaces of profiles, with their number of channels."""
_LCMS_NAMES = {b"GRAY": "gray", b"RGB ": "rgb", b"CMYK": "cmyk", b"Lab ": "lab"}
_SAME = 2  # levels of 8 bits: what two ways to compute the same colours may differ by


def space_of(profile: bytes) -> bytes:
    """The colour space of a profile's device side, as its header says: ``b"RGB "``, ``b"GRAY"``, ``b"CMYK"`` ..."""
    return profile[16:20]


def channels_of(profile: bytes) -> int:
    """How many channels the pixels of this profile have; 0 where it is of another space."""
    return SPACES.get(space_of(profile), 0)


def to_srgb(pixels: Array, profile: bytes) -> Array:
    """Pixels in a profile's colours as sRGB, by LittleCMS (relative colorimetric intent of the profile's header).

    Args:
        pixels: uint8 or uint16, (H, W) for grey, else (H, W, C); no alpha.
        profile: ICC profile for that many channels.

    Returns:
        RGB of the same type, (H, W, 3).

    Raises:
        ValueError: the profile is damaged, or is for another number of channels.
    """
    space, channels = space_of(profile), 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels_of(profile) != channels:
        raise ValueError(f"a profile of {space.decode('latin-1').strip()!r} for {channels} channels")
    try:
        converted = imagecodecs.cms_transform(
            np.ascontiguousarray(pixels),
            profile,
            imagecodecs.cms_profile("srgb"),
            colorspace=_LCMS_NAMES[space],
            outcolorspace="rgb",
            outdtype=pixels.dtype,
        )
    except RuntimeError as error:  # imagecodecs' CmsError
        raise ValueError(str(error)) from error
    return np.asarray(converted)


def lab_to_srgb(lab: Array) -> Array:
    """CIE L*a*b* (D50) as sRGB, uint16 (H, W, 3).

    Args:
        lab: float (H, W, 3), L in [0, 100], a and b in [-128, 127].
    """
    levels = [lab[..., 0] * (65535 / 100), (lab[..., 1] + 128) * 257, (lab[..., 2] + 128) * 257]  # ICC version 4
    coded = np.rint(np.clip(np.stack(levels, axis=-1), 0, 65535)).astype(np.uint16)
    return np.asarray(
        imagecodecs.cms_transform(
            coded,
            imagecodecs.cms_profile("lab4"),
            imagecodecs.cms_profile("srgb"),
            colorspace="lab",
            outcolorspace="rgb",
            outdtype=np.uint16,
        )
    )


def cmyk_to_rgb(pixels: Array) -> Array:
    """CMYK without a profile by the plain formula, (1 - C)(1 - K): uint8 or uint16 (H, W, 4) as RGB of that type."""
    white = np.iinfo(pixels.dtype).max
    left = white - pixels.astype(np.uint64)
    return ((left[..., :3] * left[..., 3:] + white // 2) // white).astype(pixels.dtype)


def make_profile(
    curve: Array | float, white: tuple[float, float], primaries: tuple[float, ...] | None = None, *, grey: bool = False
) -> bytes:
    """An ICC profile of a display.

    Args:
        curve: a gamma, or the linear light of equally spaced signals, floats in [0, 1].
        white: chromaticity (x, y) of white.
        primaries: (x, y) of red, green and blue; None for grey.
        grey: a profile for one channel.
    """
    shape = (
        {"gamma": float(curve)}
        if isinstance(curve, (int, float))
        else {"transferfunction": np.rint(np.asarray(curve) * 65535).astype(np.uint16)}
    )
    if grey or primaries is None:
        return bytes(imagecodecs.cms_profile("gray", whitepoint=white, **shape))
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=white, primaries=tuple(primaries), **shape))


@functools.lru_cache(maxsize=16)
def is_srgb(profile: bytes) -> bool:
    """Whether a profile means what files without one mean: sRGB, or its grey axis, to within rounding."""
    channels = channels_of(profile)
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    if channels == 1:
        cube = steps[None]
        expected = np.repeat(cube[..., None], 3, axis=2)
    elif channels == 3 and space_of(profile) == b"RGB ":
        expected = cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    else:
        return False
    try:
        found = to_srgb(cube, profile)
    except ValueError:
        return False
    return bool(np.abs(found.astype(int) - expected).max() <= _SAME)
