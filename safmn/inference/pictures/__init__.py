"""Image files of people: every common format and mode in, the same out, with their colour profile and orientation."""

from __future__ import annotations

from safmn.inference.pictures.exif import metadata
from safmn.inference.pictures.picture import READABLE, WRITABLE, Array, Picture, to_rgb8
from safmn.inference.pictures.reading import MAX_PIXELS, decoding, open_image, read_picture
from safmn.inference.pictures.writing import as_saved, check_size, save_options, write_picture, writing

__all__ = [
    "MAX_PIXELS",
    "READABLE",
    "WRITABLE",
    "Array",
    "Picture",
    "as_saved",
    "check_size",
    "decoding",
    "metadata",
    "open_image",
    "read_picture",
    "save_options",
    "to_rgb8",
    "write_picture",
    "writing",
]
