"""Colour spaces that a file states without an ICC profile: in PNG chunks, or in H.273 code points of AVIF and HEIC."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safmn.imaging.icc_profiles import make_profile
from safmn.value_types import Array

CHUNKS = (b"cICP", b"mDCV", b"cLLI", b"mDCv", b"cLLi", b"sRGB", b"gAMA", b"cHRM")
_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
_SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
# H.273, table 2: ColourPrimaries -> chromaticities (x, y) of white, and of red, green and blue
_PRIMARIES: dict[int, tuple[tuple[float, float], tuple[float, ...]]] = {
    1: (_D65, _SRGB),
    4: (_C, (0.67, 0.33, 0.21, 0.71, 0.14, 0.08)),
    5: (_D65, (0.64, 0.33, 0.29, 0.60, 0.15, 0.06)),
    6: (_D65, (0.630, 0.340, 0.310, 0.595, 0.155, 0.070)),
    7: (_D65, (0.630, 0.340, 0.310, 0.595, 0.155, 0.070)),
    8: (_C, (0.681, 0.319, 0.243, 0.692, 0.145, 0.049)),
    9: (_D65, (0.708, 0.292, 0.170, 0.797, 0.131, 0.046)),
    11: (_DCI, (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
    12: (_D65, (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
    22: (_D65, (0.630, 0.340, 0.295, 0.605, 0.155, 0.077)),
}
_UNSPECIFIED, _SRGB_CURVE, _PQ, _HLG = 2, 13, 16, 18
_UNSTATED = (0, _UNSPECIFIED, 3)  # code points that say nothing: reserved and unspecified
_CAMERAS = (1, 6, 14, 15)  # TransferCharacteristics of BT.709, BT.601 and BT.2020, which share one curve
_STEPS = 1024  # entries of a tabulated curve
_SRGB_GAMMA = 0.45455  # the gamma that sRGB files state, about 1 / 2.2


@dataclass(frozen=True)
class Colours:
    """The colour space that a file states.

    Attributes:
        chunks: the PNG chunks (type, content) that state it, either as read or made here.
        points: ColourPrimaries and TransferCharacteristics of H.273; None if the file has no code points.
        gamma: PNG's gamma, the exponent of encoding; None if not stated.
        white: (x, y) chromaticity of white.
        primaries: (x, y) chromaticities of red, green and blue, six numbers.
        shown: TransferCharacteristics that other formats must state to look the same; None means those of ``points``.
    """

    chunks: tuple[tuple[bytes, bytes], ...]
    points: tuple[int, int] | None = None
    gamma: float | None = None
    white: tuple[float, float] = _D65
    primaries: tuple[float, ...] = _SRGB
    shown: int | None = None

    @property
    def is_hdr(self) -> bool:
        """Whether the transfer curve is PQ or HLG, which an ICC profile of the usual kind cannot express."""
        return self.points is not None and self.points[1] in (_PQ, _HLG)

    @property
    def unsupported(self) -> str | None:
        """The stated code points that no profile can be made of, in words; None if there are none."""
        if self.points is None or self.is_hdr:
            return None
        primaries, transfer = self.points
        parts = []
        if primaries not in (*_PRIMARIES, *_UNSTATED):
            parts.append(f"colour primaries {primaries}")
        if transfer not in _UNSTATED and _curve(self.shown or transfer) is None:
            parts.append(f"transfer characteristics {transfer}")
        return " and ".join(parts) or None

    def profile(self, *, grey: bool = False) -> bytes | None:
        """Return an equivalent ICC profile; None for sRGB, and for a transfer curve that is not supported."""
        if self.points is not None:
            curve = _curve(self.shown or self.points[1])
        elif self.gamma is not None and abs(self.gamma - _SRGB_GAMMA) > 1e-3:
            curve = 1 / self.gamma
        else:
            curve = _curve(_SRGB_CURVE)
        same = curve is None or (not np.isscalar(curve) and np.allclose(curve, _curve(_SRGB_CURVE)))  # type: ignore[arg-type]
        near = np.allclose((*self.white, *self.primaries), (*_D65, *_SRGB), atol=2e-3)
        if curve is None or (same and near):
            return None
        return make_profile(curve, self.white, self.primaries, grey=grey)


def from_png(chunks: Sequence[tuple[bytes, bytes]]) -> Colours | None:
    """Return the colour space that PNG chunks state, or None (priority: PNG specification, 3rd edition, 4.3)."""
    found = {kind: content for kind, content in chunks if kind in CHUNKS}
    kept = tuple(found.items())
    if len(found.get(b"cICP", b"")) == 4:
        points = (found[b"cICP"][0], found[b"cICP"][1])
        if points[0] in _PRIMARIES:
            white, primaries = _PRIMARIES[points[0]]
            return Colours(kept, points, None, white, primaries)
        return Colours(kept, points)
    if b"sRGB" in found:
        return Colours(kept)
    gamma = int.from_bytes(found.get(b"gAMA", b""), "big") / 100000
    chromaticities = found.get(b"cHRM", b"")
    if not gamma and len(chromaticities) != 32:
        return None
    if len(chromaticities) != 32:
        return Colours(kept, None, gamma)
    x, y, *primaries_ = (value / 100000 for value in struct.unpack(">8I", chromaticities))
    return Colours(kept, None, gamma or None, (x, y), tuple(primaries_))


def from_points(primaries: int, transfer: int) -> Colours | None:
    """Return the colour space of AVIF or HEIC code points (H.273); None if they mean sRGB or are unspecified.

    In these formats programs, including browsers, show the camera curve (BT.709) as the sRGB curve, but not in PNG.
    """
    if transfer in _UNSTATED and primaries in (1, *_UNSTATED):
        return None
    transfer = _SRGB_CURVE if transfer in _UNSTATED else transfer
    primaries = 1 if primaries in _UNSTATED else primaries
    if (primaries, transfer) == (1, _SRGB_CURVE):
        return None
    shown = _SRGB_CURVE if transfer in _CAMERAS else transfer
    chunk = (b"cICP", bytes([primaries, shown, 0, 1]))
    white, chromaticities = _PRIMARIES.get(primaries, (_D65, _SRGB))
    return Colours((chunk,), (primaries, transfer), None, white, chromaticities, shown)


def _curve(transfer: int) -> Array | float | None:
    """Return linear light for signals from 0 to 1, or a gamma (H.273, table 3); None for an unsupported curve."""
    signal = np.linspace(0, 1, _STEPS)
    if transfer in _CAMERAS:
        return np.where(signal < 0.081, signal / 4.5, ((signal + 0.099) / 1.099) ** (1 / 0.45))
    if transfer == _SRGB_CURVE:
        return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}.get(transfer)
