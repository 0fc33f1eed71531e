"""Names in option files that become names of files and folders: what is wrong with one; and names of images."""

from __future__ import annotations

import string
from pathlib import PurePath

from safmn.system.console import one_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".gif")


def folder_mistake(name: str) -> str | None:
    """Why ``name`` cannot be that of one folder among others (``experiments/<name>``); None where it can."""
    if "\0" in name or name == ".." or PurePath(name).name != name:
        return f"{name!r} cannot name a folder of results: give a plain name, without '/'"
    if one_line(name) != name:
        return f"{name!r} cannot name a folder of results: it holds control characters"
    return None


def template_mistake(template: str) -> str | None:
    """Why ``template.format("image")`` does not give the name of a file; None where it does."""
    try:
        fields = [tuple(field) for _, *field in string.Formatter().parse(template) if field[0] is not None]
    except ValueError:  # unbalanced braces
        fields = []
    if fields not in ([("", "", None)], [("0", "", None)]):
        return f"{template!r} must hold {{}} once, for the name of the GT image without ending, as in {{}}x2"
    return None


def image_name(path: str) -> str:
    """An image's name without folder and ending: the same for a file, an lmdb key and an image in a store.

    >>> image_name("HR/photo.v2.png"), image_name("photo.v2")
    ('photo.v2', 'photo.v2')
    """
    name = PurePath(path).name
    ending = PurePath(name).suffix
    return name.removesuffix(ending) if ending.lower() in IMAGE_SUFFIXES else name
