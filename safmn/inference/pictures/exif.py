"""EXIF data: what of it is kept, and what has to change with the pixels."""

from __future__ import annotations

import logging

from PIL import ExifTags, Image

from safmn.errors import first_line

logger = logging.getLogger(__name__)

_EXIF_IFDS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
TIFF_TEXTS = (
    *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software),
    *(ExifTags.Base.DateTime, ExifTags.Base.Artist, ExifTags.Base.Copyright),
)
# What describes a picture, of all that a TIFF file keeps in the same place as EXIF does.
_DESCRIPTIVE = (*TIFF_TEXTS, ExifTags.Base.Orientation, *_EXIF_IFDS)


def load_exif(data: bytes | None) -> Image.Exif:
    """EXIF data to look things up in; of None, an empty one."""
    exif = Image.Exif()
    if data:
        exif.load(data)
    return exif


def metadata(image: Image.Image) -> tuple[bytes | None, bytes | None]:
    """EXIF data and colour profile of an opened file; damaged EXIF data is dropped, with a warning."""
    icc = image.info.get("icc_profile") or None
    try:
        exif = image.getexif()
        if not exif:
            return None, icc
        kept = load_exif(exif.tobytes())
        for tag in [tag for tag in kept if image.format == "TIFF" and tag not in _DESCRIPTIVE]:
            del kept[tag]
        return (kept.tobytes() if kept else None), icc
    except Exception as error:  # the parser trusts offsets and types that a damaged block states
        logger.warning("%s: its EXIF data cannot be read (%s) and is dropped.", image.filename, first_line(error))  # type: ignore[attr-defined]
        return None, icc


def without_orientation(data: bytes | None) -> bytes | None:
    """The same without the orientation; None where that was all."""
    exif = load_exif(data)
    exif.pop(ExifTags.Base.Orientation, None)
    return exif.tobytes() if exif else None


def sized_exif(data: bytes, width: int, height: int) -> bytes:
    """EXIF data with this size where it states one, and without the thumbnail of the old image."""
    exif = load_exif(data)
    details = exif.get_ifd(ExifTags.IFD.Exif)
    for tag, value in ((ExifTags.Base.ExifImageWidth, width), (ExifTags.Base.ExifImageHeight, height)):
        if tag in details:
            details[tag] = value
    return exif.tobytes()
