"""Fit a picture to an output format: convert or drop what the format cannot hold, with a warning."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np

from safmn.errors import DataError, first_line
from safmn.imaging.icc_profiles import channels_of, is_srgb, space_of, to_srgb
from safmn.inference.pictures import exif as exif_data
from safmn.inference.pictures import png
from safmn.inference.pictures.picture import Array, Extras, Picture, eight_bits, onto_white

logger = logging.getLogger(__name__)

Say = Callable[..., None]
"""A function that reports losses. It takes a message and its arguments, like a logger's methods."""

_SOFT = 9  # pixels; a hard edge of alpha is narrower than this after upscaling
AVIF_BITS = 10  # bits of AVIF written from images with more than 8; few programs show 12
_DEEP = ("PNG", "TIFF")  # formats that hold 16 bits
_WITH_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF", "GIF")
_WITH_GREY = ("PNG", "TIFF", "JPEG")  # other formats with profiles store grey as RGB
_WITH_GREY_ALPHA = ("PNG", "TIFF")
_WITH_ORIENTATION = ("PNG", "JPEG", "WEBP")
_WITH_PROFILE = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF")
_WITH_EXIF = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF")
_WITH_XMP = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF")
_WITH_IPTC = ("PNG", "JPEG", "TIFF")
_WITH_COMMENT = ("PNG", "JPEG", "GIF", "TIFF")
_WITH_RESOLUTION = ("PNG", "JPEG", "BMP", "TIFF")
_IN_EXIF = ("WEBP", "AVIF")  # formats that hold a resolution only in EXIF data
_SEGMENT = 65533  # largest content of a JPEG segment, in bytes
_LONGEST = {"exif": _SEGMENT - 6, "xmp": _SEGMENT - 29, "iptc": _SEGMENT - 30, "comment": _SEGMENT}  # in JPEG
_NAMED_AT_MOST = 5  # texts listed in a message


def fitted(picture: Picture, kind: str, path: Path, *, say: Say = logger.warning) -> Picture:
    """Return the picture as a format can hold it: bit depth, channels, colours, orientation and metadata.

    Args:
        picture: the picture to write.
        kind: Pillow's name of the format.
        path: the file that messages name.
        say: reports each conversion and loss.

    Raises:
        DataError: the colours are HDR, which the format cannot express.
    """
    picture = picture if kind in _WITH_ORIENTATION else picture.upright()
    picture = _with_pixels(picture, kind, path, say)
    picture = _with_colours(picture, kind, path, say)
    return _with_notes(picture, kind, path, say)


def _with_pixels(picture: Picture, kind: str, path: Path, say: Say) -> Picture:
    """Fit the bit depth and the channels."""
    pixels = picture.pixels
    if pixels.dtype == np.uint16 and kind == "AVIF" and _is_bare(picture):
        say("%s: AVIF is written with %d bits; the image had more than 8.", path, AVIF_BITS)
    elif pixels.dtype == np.uint16 and kind not in _DEEP:
        beside = " with EXIF data, XMP, a profile or a resolution" if kind == "AVIF" else ""
        say("%s: %s holds 8 bits%s; the image had 16.", path, kind, beside)
        pixels = eight_bits(pixels)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels in (2, 4) and kind not in _WITH_ALPHA:
        say("%s: %s holds no transparency; the image is put on white.", path, kind)
        pixels = onto_white(pixels)
    if kind == "GIF" and pixels.ndim == 3 and pixels.shape[2] == 4 and _is_soft(pixels[..., 3]):
        say("%s: a pixel of a GIF is shown or not; the partial transparency of the image is lost.", path)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return replace(picture, pixels=np.ascontiguousarray(pixels))


def _with_colours(picture: Picture, kind: str, path: Path, say: Say) -> Picture:
    """State the colour space as the format does; if it cannot, convert the pixels to sRGB."""
    colours, icc = picture.extras.colours, picture.icc
    channels = 1 if picture.pixels.ndim == 2 else picture.pixels.shape[2]
    grey = channels <= 2
    as_rgb = grey and (kind not in _WITH_GREY or (channels == 2 and _is_split(picture.pixels, kind)))
    if colours is not None and kind != "PNG" and not (kind == "AVIF" and colours.points):
        if colours.is_hdr:
            raise DataError(
                f"{path}: its colours have high dynamic range (PQ or HLG), which {kind} cannot express; choose "
                "--format png or avif"
            )
        if colours.unsupported:
            say(
                "%s: the input states its colours by %s (ITU-T H.273), which %s cannot express; they are taken as "
                "sRGB. --format png or avif keeps them.",
                path,
                colours.unsupported,
                kind,
            )
        icc = colours.profile(grey=grey and not (as_rgb and kind in _WITH_PROFILE))
        if icc and kind in _WITH_PROFILE:
            say("%s: its colour space is written as a colour profile.", path)
        colours = None
    if icc is None and kind not in _WITH_EXIF and exif_data.is_adobe_rgb(picture.exif):
        icc = bytes(imagecodecs.cms_profile("adobergb"))
    pixels = picture.pixels
    if icc is not None and (kind not in _WITH_PROFILE or channels_of(icc) != (1 if grey and not as_rgb else 3)):
        pixels, icc = _in_srgb(pixels, icc, kind, path, say), None
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 2 and _is_split(pixels, kind):
        pixels = pixels[..., [0, 0, 0, 1]]
    return replace(
        picture, pixels=np.ascontiguousarray(pixels), icc=icc, extras=replace(picture.extras, colours=colours)
    )


def _is_bare(picture: Picture) -> bool:
    """Return whether the picture has nothing that the encoder for deep AVIF cannot write: EXIF, XMP, a profile, ..."""
    extras = picture.extras
    profile = picture.icc or (extras.colours and not extras.colours.points)
    return not (picture.exif or profile or extras.xmp or extras.resolution)


def _is_split(pixels: Array, kind: str) -> bool:
    """Return whether grey with alpha is written as RGB with alpha."""
    return kind not in _WITH_GREY_ALPHA or pixels.dtype == np.uint16


def _in_srgb(pixels: Array, icc: bytes, kind: str, path: Path, say: Say) -> Array:
    """Convert pixels to sRGB, the meaning of a file without profile, if the format cannot hold their profile."""
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    count = 1 if planes.shape[2] <= 2 else 3
    if count == 3 and channels_of(icc) == 1 and (planes[..., :3] == planes[..., :1]).all():  # grey stored as RGB
        planes, count = planes[..., [0, *range(3, planes.shape[2])]], 1
    if is_srgb(icc):
        return pixels
    if channels_of(icc) != count:
        space = space_of(icc).decode("latin-1").strip()
        say("%s: its colour profile is for %r, not for these pixels, and is dropped.", path, space)
        return pixels
    try:
        colours = to_srgb(planes[..., 0] if count == 1 else planes[..., :3], icc)
    except ValueError as error:
        say("%s: its colour profile cannot be used (%s) and is dropped.", path, first_line(error))
        return pixels
    say("%s: %s cannot hold its colour profile; the colours are converted to sRGB.", path, kind)
    return np.concatenate([colours, planes[..., count:]], axis=2)


def _with_notes(picture: Picture, kind: str, path: Path, say: Say) -> Picture:
    """Keep EXIF data, XMP, IPTC data, texts and resolution as far as the format can hold them."""
    exif, extras = picture.exif, picture.extras
    if exif and kind == "AVIF":  # Pillow re-encodes the data if it contains an orientation
        exif = exif_data.fitted(exif, picture.size, bare=True)
    resolution = extras.resolution
    if resolution and kind in _IN_EXIF and not exif_data.resolution(exif):
        exif = exif_data.with_resolution(exif, resolution)
    if resolution and not resolution.absolute and kind in ("JPEG", "BMP"):
        resolution = None
    kept = Extras(
        colours=extras.colours,
        resolution=resolution if kind in _WITH_RESOLUTION else None,
        xmp=_held(extras.xmp, "xmp", kind, _WITH_XMP),
        iptc=_held(extras.iptc, "iptc", kind, _WITH_IPTC),
        comment=_held(extras.comment, "comment", kind, _WITH_COMMENT),
        texts=extras.texts if kind == "PNG" else (),
    )
    held = _held(exif, "exif", kind, _WITH_EXIF)
    dropped = [
        name
        for name, before, after in (
            ("the EXIF data", exif, held),
            ("the XMP", extras.xmp, kept.xmp),
            ("the IPTC data", extras.iptc, kept.iptc),
            ("the comment", extras.comment, kept.comment),
            (f"the texts ({_keywords(extras)})", extras.texts, kept.texts),
            ("the resolution", extras.resolution, kept.resolution or kind in _IN_EXIF),
        )
        if before and not after
    ]
    if dropped:
        say("%s: %s cannot hold %s; dropped from the output.", path, kind, " and ".join(dropped))
    return replace(picture, exif=held, extras=kept)


def _held(data: bytes | None, name: str, kind: str, kinds: tuple[str, ...]) -> bytes | None:
    return data if data and kind in kinds and (kind != "JPEG" or len(data) <= _LONGEST[name]) else None


def _keywords(extras: Extras) -> str:
    names = [png.keyword(content).decode("latin-1") for _, content in extras.texts]
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _is_soft(alpha: Array) -> bool:
    """Return whether alpha has larger areas of partial transparency than the edges of an enlarged cut-out have."""
    partial = (alpha > 0) & (alpha < 255)
    return bool(cv2.erode(partial.astype(np.uint8), np.ones((_SOFT, _SOFT), np.uint8)).any())
