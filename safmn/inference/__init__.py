"""Run trained networks on images and films: upscaling, exact tiling, back ends, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safmn.inference.upscaler import Upscaler

__all__ = ["Upscaler"]


def __getattr__(name: str) -> Any:
    if name == "Upscaler":  # imported on first use: the commands read :mod:`safmn.inference.choices` without torch
        from safmn.inference.upscaler import Upscaler

        return Upscaler
    raise AttributeError(f"module 'safmn.inference' has no attribute {name!r}")
