"""Metrics by the short names that commands use, with the settings of the field's tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safmn.errors import OptionError, did_you_mean
from safmn.metrics.direction import lower_is_better
from safmn.metrics.set_metric import set_metric_of
from safmn.registry import METRIC_REGISTRY, find, names

_FIDELITY = {
    "psnr": ("calculate_psnr", True),
    "ssim": ("calculate_ssim", True),
    "psnr-rgb": ("calculate_psnr", False),
    "ssim-rgb": ("calculate_ssim", False),
}
DEFAULT = ("psnr", "ssim")


def sections(
    chosen: Sequence[str], crop: int, *, fetch: bool = False, reference: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Return the section of each metric, as an option file has it.

    Args:
        chosen: ``psnr``, ``ssim`` (both on Y), ``psnr-rgb``, ``ssim-rgb``, ``lpips``, ``dists``, any registered metric
            (with or without ``calculate_`` before its name), ``pyiqa:NAME`` or ``torchmetrics:NAME``. ``fid:256`` is
            FID of patches of 256 pixels.
        crop: pixels cropped at each edge, for metrics that have ``crop_border``.
        fetch: let metrics download weights that are missing.
        reference: folder of images that metrics of whole sets compare with, instead of the GT images.

    Raises:
        OptionError: there is no metric of that name, or the package that it needs is not installed.
    """
    found = {name.lower(): _section(name.lower(), crop, fetch) for name in chosen}
    for name, section in found.items():
        if reference is not None and set_metric_of(section) is not None:
            section["reference"] = str(reference)
        missing = getattr(find(METRIC_REGISTRY, section["type"]), "missing", None)
        if missing is not None and (sentence := missing(section)):
            raise OptionError(f"--metrics {name}: {sentence}")
    return found


def _section(name: str, crop: int, fetch: bool) -> dict[str, Any]:
    if name in _FIDELITY:
        kind, luma = _FIDELITY[name]
        return {"type": kind, "crop_border": crop, "test_y_channel": luma}
    more: dict[str, Any] = {}
    given = name
    if found := re.fullmatch(r"(.+):(\d+)", name):
        name, more = found[1], {"patch": int(found[2])}
    package, colon, inner = name.partition(":")
    if colon and (package, inner) == ("pyiqa", "fid"):
        name, more = inner, more | {"package": package}
    elif colon and package == "pyiqa":
        name, more = package, more | {"metric": inner}
    elif colon and package == "torchmetrics":
        name, more = inner, more | {"package": package}
    known = names(METRIC_REGISTRY)
    wanted = (name, f"calculate_{name}")
    kind = next((each for each in sorted(known, key=len) if each.lower() in wanted), "")
    parameters = inspect.signature(find(METRIC_REGISTRY, kind)).parameters if kind else {}
    if not kind or not set(more) <= set(parameters):
        short = [*_FIDELITY, *(each.removeprefix("calculate_") for each in known)]
        listed = ", ".join(dict.fromkeys(short))
        near = did_you_mean(name, short)
        raise OptionError(f"--metrics {given}: there is no metric of this name.{near} Known: {listed}, pyiqa:NAME")
    offered = {"crop_border": crop, **({"fetch": True} if fetch else {})}
    return {"type": kind, **more, **{key: value for key, value in offered.items() if key in parameters}}


def is_lower_better(section: Mapping[str, Any]) -> bool:
    """Return whether lower values are better; for BasicSR's NIQE they are, although it does not say so."""
    return (section.get("better") is None and section.get("type") == "calculate_niqe") or lower_is_better(section)


def settings(section: Mapping[str, Any]) -> str:
    """Return in words how a metric was measured."""
    words = ["lower is better" if is_lower_better(section) else "higher is better"]
    if "test_y_channel" in section:
        words.append("Y channel" if section["test_y_channel"] else "RGB")
    if "crop_border" in section:
        words.append(f"{section['crop_border']} pixels cropped at each edge")
    if set_metric_of(section) is not None:
        patch = section.get("patch")
        words.append(f"one value for the whole set, of {f'patches of {patch}x{patch}' if patch else 'whole images'}")
        words += [f"compared with {section['reference']}"] if section.get("reference") else []
    return ", ".join(words)


def decimals(section: Mapping[str, Any]) -> int:
    """Return the decimals that a table shows of a metric: three for PSNR in dB, four for others."""
    return 3 if "psnr" in section["type"] else 4
