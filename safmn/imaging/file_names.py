"""Image names, and checks of the option-file values that become names of files and folders."""

from __future__ import annotations

import string
import sys
from pathlib import PurePath

from safmn.system.console import one_line
from safmn.system.files import windows_mistake

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".gif")


def folder_mistake(name: str) -> str | None:
    """Return why ``name`` cannot name a single folder (``experiments/<name>``), or None if it can."""
    if "\0" in name or name == ".." or PurePath(name).name != name:
        return f"{name!r} cannot be the name of a results folder: use a plain name without '/'"
    if one_line(name) != name:
        return f"{name!r} cannot be the name of a results folder: it contains control characters"
    return windows_mistake(name) if sys.platform == "win32" else None


def template_mistake(template: str) -> str | None:
    """Return why ``template.format("image")`` is not a file name, or None if it is one."""
    try:
        fields = [tuple(field) for _, *field in string.Formatter().parse(template) if field[0] is not None]
    except ValueError:  # unbalanced braces
        fields = []
    if fields not in ([("", "", None)], [("0", "", None)]):
        return f"{template!r} must contain {{}} once, for the GT image's name without suffix, as in {{}}x2"
    return None


def image_name(path: str) -> str:
    """Return an image's name without folder and suffix: the same for a file, an LMDB key and an image in a store.

    >>> image_name("HR/photo.v2.png"), image_name("photo.v2")
    ('photo.v2', 'photo.v2')
    """
    name = PurePath(path).name
    ending = PurePath(name).suffix
    return name.removesuffix(ending) if ending.lower() in IMAGE_SUFFIXES else name
