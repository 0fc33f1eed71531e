"""``safmn prepare meta``: list the images of a folder and their sizes in a BasicSR meta-info file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from safmn.errors import DataError, exit_status
from safmn.imaging import IMAGE_SUFFIXES, check_names, image_size, list_images
from safmn.imaging.tiff import is_tiff, tiff_layout
from safmn.prepare import arguments as arguments_of
from safmn.prepare.outputs import named
from safmn.prepare.parallel import default_jobs, in_order, progress
from safmn.system.console import say_line
from safmn.system.files import write_atomically


def write_meta(folder: Path, output: Path, *, recursive: bool = False, jobs: int | None = None) -> int:
    """Write a line ``name.png (height,width,channels)`` for each image, sorted by name; return the number of images.

    With ``recursive``, images in subfolders are listed as ``sub/name.png``.

    Raises:
        DataError: the folder is missing, has no image, or has an unreadable one, or a name contains a backslash;
            nothing is written.
    """
    paths = _images_below(folder) if recursive else list_images(folder)
    for path in paths:
        if "\\" in path.relative_to(folder).as_posix():
            raise DataError(f"{path}: in a list of images, a backslash separates folders; rename the image or folder")
    with contextlib.closing(in_order(describe, paths, jobs or default_jobs())) as results:
        shapes = [shape() for shape in progress(results, len(paths), f"sizes in {folder}")]
    lines = [f"{path.relative_to(folder).as_posix()} {shape}\n" for path, shape in zip(paths, shapes, strict=True)]
    write_atomically(output, "".join(lines))
    return len(lines)


def describe(path: Path) -> str:
    """Return ``"(height,width,channels)"`` from the file's header.

    Raises:
        DataError: the file is not a readable image.
    """
    try:
        with path.open("rb") as file:
            if is_tiff(file.read(4)):
                file.seek(0)
                return "({},{},{})".format(*tiff_layout(file))
        with Image.open(path) as image:
            # Training reads 3 channels whatever the palette or alpha channel, or 1 if the image is grey.
            channels = 1 if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;") else 3
            height, width = image_size(path)
            return f"({height},{width},{channels})"
    except DataError as error:
        raise DataError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error


def _images_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: no image in this folder or its subfolders")
    return check_names(found, folder)


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, or 2 for a user's mistake or an unreadable image."""
    arguments = arguments_of.meta().parse_args(argv)
    folder = named(arguments.folder)
    output = arguments.output or folder.with_name(f"meta_info_{folder.name}.txt")
    count = write_meta(folder, output, recursive=arguments.recursive, jobs=arguments.jobs)
    say_line(f"{output}: {count} images")
    return 0
