"""Read and write users' image files in every common format and mode, with colour profile, orientation and metadata."""

from __future__ import annotations

from safmn.inference.choices import MAX_PIXELS, READABLE, WRITABLE
from safmn.inference.pictures.fitting import fitted
from safmn.inference.pictures.metadata import metadata
from safmn.inference.pictures.picture import Array, Extras, Picture, to_rgb8
from safmn.inference.pictures.reading import decoding, head_of, is_single, open_image, read_picture
from safmn.inference.pictures.writing import as_saved, check_size, finished, save_options, write_picture, writing

__all__ = [
    "MAX_PIXELS",
    "READABLE",
    "WRITABLE",
    "Array",
    "Extras",
    "Picture",
    "as_saved",
    "check_size",
    "decoding",
    "finished",
    "fitted",
    "head_of",
    "is_single",
    "metadata",
    "open_image",
    "read_picture",
    "save_options",
    "to_rgb8",
    "write_picture",
    "writing",
]
