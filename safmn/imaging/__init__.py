"""Functions on images as numpy arrays, (H, W, C) in RGB order: MATLAB-exact resize, colour, cropping, file I/O."""

from __future__ import annotations

from safmn.imaging.colour import rgb_to_y, to_levels, to_tensor, to_uint8
from safmn.imaging.io import (
    IMAGE_SUFFIXES,
    check_names,
    decode_image,
    decode_rgb,
    encode_png,
    image_size,
    list_images,
    read_image,
    read_rgb,
    write_image,
)
from safmn.imaging.patches import augment, crop_border, mod_crop
from safmn.imaging.resize import imresize

__all__ = [
    "IMAGE_SUFFIXES",
    "augment",
    "check_names",
    "crop_border",
    "decode_image",
    "decode_rgb",
    "encode_png",
    "image_size",
    "imresize",
    "list_images",
    "mod_crop",
    "read_image",
    "read_rgb",
    "rgb_to_y",
    "to_levels",
    "to_tensor",
    "to_uint8",
    "write_image",
]
