"""Hints: the command that downloads or makes a missing data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

_DOWNLOADED_BENCHMARKS = ("Set5", "Set14", "B100", "Urban100")
_ON_REQUEST = ("Manga109",)
_PLACES = ("dataroot", "dataroot_gt", "dataroot_lq", "meta_info_file", "meta_info")  # keys that name files or folders
_LAYOUT = "datasets/README.md explains how to download, make and lay out data sets."


def hint(path: str | os.PathLike[str]) -> str:
    """Return a sentence with the command that downloads or makes the missing data set at ``path`` (a path or a name).

    >>> hint("datasets/benchmark/Set5/LR_bicubic/X4")
    'Get it with: safmn prepare download benchmark'
    """
    place = PurePath(path)
    name = place.name
    if name.endswith(".store"):
        return f"Make it with: safmn prepare store --hr DIR --scale S -o {place}"
    if name.endswith(".lmdb"):
        return f"Make it with: safmn prepare lmdb {place.with_suffix('')}"
    if name.endswith(".txt"):
        return f"Make it with: safmn prepare meta DIR -o {place}"
    return _by_set(place) or _from_hr(place) or _LAYOUT


def absence(section: Mapping[str, Any]) -> str | None:
    """Return which folders or files of a data set's section are missing, with the command that gets them; or None."""
    inner = [part for value in section.values() for part in (value if isinstance(value, list) else [value])]
    nested = (absence(part) for part in inner if isinstance(part, Mapping))
    given = [section[key] for key in _PLACES if section.get(key)]
    places = [place for value in given for place in (value if isinstance(value, list) else [value])]
    missing = [place for place in places if not os.path.exists(place)]
    if missing:
        return f"there is no {' and no '.join(map(str, missing))}. {hint(missing[0])}"
    return next(filter(None, nested), None)


def is_on_request(path: str | os.PathLike[str]) -> bool:
    """Return whether the data set at ``path`` is available only on request, because its licence forbids copies."""
    return any(part in _ON_REQUEST for part in PurePath(path).parts)


def _by_set(place: PurePath) -> str | None:
    """Return the hint for a set with a fixed location; None for other sets, and if only LR images are missing."""
    lr = next((folder for folder in (place, place.parent) if folder.name == "LR_bicubic"), None)
    if lr is not None and os.path.isdir(lr.parent / "HR"):
        return None
    if any(part in _DOWNLOADED_BENCHMARKS for part in place.parts):
        return "Get it with: safmn prepare download benchmark"
    if "DIV2K_val100" in place.parts:
        return "Get it with: safmn prepare download div2k-val"
    if "Manga109" in place.parts:
        return (
            "Manga109 is available only on request (http://www.manga109.org): put its images into "
            "datasets/benchmark/Manga109/HR, then run: safmn prepare lr --hr datasets/benchmark/Manga109/HR"
        )
    return None


def _from_hr(place: PurePath) -> str | None:
    """Return the hint for a folder of HR images or one made from them: ``.../HR``, ``HR_sub``, ``LR_bicubic/X4``."""
    scale = place.name[1:] if place.name[:1] == "X" and place.name[1:].isdigit() else ""
    kind = place.parent.name if scale else place.name
    root = place.parent.parent if scale else place.parent
    scales = f" --scales {scale}" if scale else ""
    hr = root / "HR"
    if kind == "HR":
        known = {"DF2K": "df2k", "DIV2K": "div2k", "Flickr2K": "flickr2k"}.get(root.name)
        return f"Get it with: safmn prepare download {known}" if known else None
    made = {
        "LR_bicubic": f"Make it with: safmn prepare lr --hr {hr}{scales}",
        "HR_sub": f"Make it with: safmn prepare subimages --hr {hr}",
        "LR_bicubic_sub": f"Make it with: safmn prepare subimages --hr {hr}{scales or ' --scales 2 3 4'}",
    }.get(kind)
    if made is None:
        return None
    if os.path.isdir(hr):
        if kind == "LR_bicubic_sub" and not os.path.isdir(root / "LR_bicubic" / place.name):
            return f"Make it with: safmn prepare lr --hr {hr}{scales} && {made.removeprefix('Make it with: ')}"
        return made
    first = _from_hr(hr)
    return (
        f"{first}; {made[0].lower()}{made[1:].replace('Make', 'make')}"
        if first
        else f"{made} (HR images in {hr} first)"
    )
