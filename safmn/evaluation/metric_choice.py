"""Metrics by the short names that commands use, with the settings of the field's tables."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from safmn.errors import OptionError, did_you_mean
from safmn.registry import METRIC_REGISTRY, find, names

_FIDELITY = {
    "psnr": ("calculate_psnr", True),
    "ssim": ("calculate_ssim", True),
    "psnr-rgb": ("calculate_psnr", False),
    "ssim-rgb": ("calculate_ssim", False),
}
DEFAULT = ("psnr", "ssim")


def sections(chosen: Sequence[str], crop: int) -> dict[str, dict[str, Any]]:
    """Return the section of each metric, as an option file has it.

    Args:
        chosen: ``psnr``, ``ssim`` (both on Y), ``psnr-rgb``, ``ssim-rgb``, or any registered metric, with or without
            ``calculate_`` before its name.
        crop: pixels cropped at each edge, for metrics that have ``crop_border``.

    Raises:
        OptionError: there is no metric of that name.
    """
    return {name.lower(): _section(name.lower(), crop) for name in chosen}


def _section(name: str, crop: int) -> dict[str, Any]:
    if name in _FIDELITY:
        kind, luma = _FIDELITY[name]
        return {"type": kind, "crop_border": crop, "test_y_channel": luma}
    known = names(METRIC_REGISTRY)
    kind = next((each for each in known if each.lower() in (name, f"calculate_{name}")), "")
    if not kind:
        short = [*_FIDELITY, *(each.removeprefix("calculate_") for each in known)]
        listed = ", ".join(dict.fromkeys(short))
        raise OptionError(
            f"--metrics {name}: there is no metric of this name.{did_you_mean(name, short)} Known: {listed}"
        )
    parameters = inspect.signature(find(METRIC_REGISTRY, kind)).parameters
    return {"type": kind, **({"crop_border": crop} if "crop_border" in parameters else {})}


def is_lower_better(section: Mapping[str, Any]) -> bool:
    """Return whether lower values of a metric are better: as its section or its function says; otherwise higher is."""
    better = section.get("better") or getattr(find(METRIC_REGISTRY, section["type"]), "better", None)
    return str(better or ("lower" if section["type"] == "calculate_niqe" else "higher")) == "lower"


def decimals(section: Mapping[str, Any]) -> int:
    """Return the decimals that a table shows of a metric: three for PSNR in dB, four for others."""
    return 3 if "psnr" in section["type"] else 4
