"""Run trained networks on images and films: upscaling, exact tiling, back ends, export."""

from __future__ import annotations

from safmn.inference.upscaler import Upscaler

__all__ = ["Upscaler"]
