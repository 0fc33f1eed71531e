"""Read HEIC and HEIF, the photo formats of iPhones, with pillow-heif (optional)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from safmn.errors import DataError
from safmn.inference.pictures.metadata import heif_metadata
from safmn.inference.pictures.picture import Array, Picture

logger = logging.getLogger(__name__)

_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def is_heif(head: bytes) -> bool:
    """Return whether a file with these first bytes is HEIC or HEIF; False for AVIF, which Pillow reads."""
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS and b"avif" not in head and b"avis" not in head


def read_heif(path: Path, check_size: Callable[[int, int], None]) -> Picture:
    """Return the primary image of a file, upright; more than 8 bits become 16.

    Args:
        path: the file.
        check_size: called with width and height before the pixels are decoded.

    Raises:
        DataError: pillow-heif is missing.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise DataError(
            f"{path}: HEIC needs pillow-heif: pip install pillow-heif (or pip install '.[heif]' in the clone)"
        ) from error
    file: Any = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
    image = file[file.primary_index]
    check_size(*image.size)
    if len(file) > 1:
        logger.warning("%s: only the primary one of its %d images is read.", path, len(file))
    pixels = _scaled(np.asarray(image), int(image.info.get("bit_depth") or 8), image.mode)
    # The decoder has applied the file's rotation. EXIF data repeats it, and must not make others apply it again.
    return Picture(pixels, *heif_metadata(image.info, path)).described(turned=True)


def _scaled(pixels: Array, depth: int, mode: str) -> Array:
    """Scale values to their full range and undo premultiplied alpha.

    pillow-heif puts 10 and 12 bits into the upper bits of 16.
    """
    if pixels.dtype != np.uint16:
        pixels = np.ascontiguousarray(pixels)
    else:
        white = 2**depth - 1
        pixels = ((pixels.astype(np.uint32) >> (16 - depth)) * 65535 // white).astype(np.uint16)
    if mode.startswith("RGBa"):  # premultiplied
        white = np.iinfo(pixels.dtype).max
        straight = np.rint(pixels[..., :3] * (white / np.maximum(pixels[..., 3:], 1).astype(np.float64)))
        pixels = np.concatenate([np.minimum(straight, white).astype(pixels.dtype), pixels[..., 3:]], axis=2)
    return pixels
