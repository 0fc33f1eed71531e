"""The file format of patch stores: decoded images one after another, so that a crop is a slice of a memory map.

``header | pixels of image 0: GT, LQ | pixels of image 1 ... | index``. Pixels are uint8 RGB, planar (3, H, W); each
block starts at a multiple of 64 bytes. The index (msgpack) holds sizes, offsets, a checksum of each image's pixels, and
a description of the source files. The header points to the index and is written last, when all else is on the disk.
A store of scale 1 that was made without LR images holds GT images only, for training with degradations.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import msgspec
import numpy as np

from safmn.errors import DataError
from safmn.imaging import IMAGE_SUFFIXES

ALIGNMENT = 64
_MAGIC = b"SAFMNPS\x01"
_HEADER = struct.Struct("<8sQQ16s")  # magic and version, offset and length of the index, its digest
CheckSource: TypeAlias = Literal["always", "if_present", "never"]
REMAKE = "Rebuild it with safmn prepare store."
_LARGEST_SCALE = 64
_CHECKED_AT_MOST = 4096  # source files checked when a store is opened, to limit the start-up time


def digest_of(*blocks: bytes | np.ndarray) -> bytes:
    """Return the BLAKE2b digest (16 bytes) of the concatenated blocks; arrays must be C-contiguous."""
    digest = hashlib.blake2b(digest_size=16)
    for block in blocks:
        digest.update(block if isinstance(block, bytes) else block.reshape(-1).data)
    return digest.digest()


def aligned(size: int) -> int:
    """Round ``size`` up to the alignment of blocks."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class SourceFile(msgspec.Struct, frozen=True, array_like=True):
    """The state of an image file when the store was built."""

    name: str
    size: int
    mtime_ns: int
    digest: bytes

    def is_unchanged(self, folder: str) -> bool:
        """Whether the file has the same size and time, or, if only the time differs (a copy), the same content.

        Raises:
            OSError: the file does not exist.
        """
        path = Path(folder, self.name)
        now = path.stat()
        if now.st_size != self.size:
            return False
        return now.st_mtime_ns == self.mtime_ns or digest_of(path.read_bytes()) == self.digest


class StoredImage(msgspec.Struct, frozen=True, array_like=True):
    """One pair of images in a store.

    ``lr`` is None if the LQ image was made from the GT image or there is no LQ image.
    """

    offset: int
    lq_height: int
    lq_width: int
    digest: bytes
    hr: SourceFile
    lr: SourceFile | None

    def lq_bytes(self, scale: int) -> int:
        """Return the number of bytes of the LQ pixels; 0 in a store of GT images only."""
        return 0 if scale == 1 and self.lr is None else 3 * self.lq_height * self.lq_width

    def gt_bytes(self, scale: int) -> int:
        """Return the number of bytes of the GT pixels."""
        return 3 * self.lq_height * self.lq_width * scale * scale

    def lq_offset(self, scale: int) -> int:
        """Return the offset of the LQ pixels in the file."""
        return self.offset + aligned(self.gt_bytes(scale))

    def end(self, scale: int) -> int:
        """Return the offset of the next image in the file."""
        return self.lq_offset(scale) + aligned(self.lq_bytes(scale))


class Source(msgspec.Struct, frozen=True):
    """The folders and options from which a store was made.

    ``lr_folder`` is None if the LQ images were made from the GT images with MATLAB's bicubic or, at scale 1, if there
    are no LQ images.
    """

    scale: int
    hr_folder: str
    lr_folder: str | None
    filename_tmpl: str
    meta_info: str | None

    @property
    def gt_alone(self) -> bool:
        """Whether the store holds no LQ images."""
        return self.scale == 1 and self.lr_folder is None


class StoreIndex(msgspec.Struct, frozen=True):
    """The index of a store: its source and its images."""

    source: Source
    images: list[StoredImage]

    def first_change(self, *, at_most: int = _CHECKED_AT_MOST) -> str | None:
        """Describe the first change in the source images since the store was built; None if nothing changed.

        New names are looked for in the HR folder unless a meta-info file chose the images. At most ``at_most`` images,
        evenly spread, are checked for changes.
        """
        checked = self.images[:: -(-len(self.images) // at_most)]
        names = {image.hr.name for image in self.images} if self.source.meta_info is None else None
        change = _first_change(self.source.hr_folder, [image.hr for image in checked], names)
        if change or self.source.lr_folder is None:
            return change
        return _first_change(self.source.lr_folder, [image.lr for image in checked if image.lr], None)


def _first_change(folder: str, files: Sequence[SourceFile], names: set[str] | None) -> str | None:
    if names is not None:
        now = {entry for entry in os.listdir(folder) if os.path.splitext(entry)[1].lower() in IMAGE_SUFFIXES}
        added = sorted(name for name in now - names if not name.startswith("."))
        if added:
            return f"{os.path.join(folder, added[0])} is new ({len(added)} new images)"
    for file in files:
        path = os.path.join(folder, file.name)
        if not os.path.isfile(path):
            return f"{path} is gone"
        if not file.is_unchanged(folder):
            return f"{path} was changed"
    return None


def finish_file(file: BinaryIO, end: int, index: StoreIndex) -> None:
    """Write the index at ``end``, the end of the pixels, wait until it is on the disk, then write the header."""
    content = msgspec.msgpack.encode(index)
    header = _HEADER.pack(_MAGIC, end, len(content), digest_of(content))
    for offset, block in ((end, content), (0, header)):
        write_at(file, offset, block)
        file.flush()
        os.fsync(file.fileno())


def write_at(file: BinaryIO, offset: int, block: bytes | memoryview) -> None:
    """Write a whole block at ``offset`` of a file."""
    file.seek(offset)
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return ``size`` bytes from ``offset`` on, or fewer at the end of the file."""
    file.seek(offset)
    return file.read(size)


class DamagedStore(DataError):
    """A patch store is truncated or its index is damaged."""


def read_index(path: str | Path) -> StoreIndex:
    """Read the index of a store.

    Raises:
        DataError: the file is missing or not a patch store.
        DamagedStore: it is truncated or its index is damaged.
    """
    if not os.path.isfile(path):
        raise DataError(f"no such patch store: {path}. Make one with: safmn prepare store --hr DIR --scale S -o {path}")
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:8] != _MAGIC:
            raise DataError(
                f"{path} is not a patch store, or has a different version. If it is an old patch store, delete it and "
                "rebuild it with safmn prepare store."
            )
        _, offset, length, digest = _HEADER.unpack(header)
        whole = offset + length == os.fstat(file.fileno()).st_size
        content = read_at(file, offset, length) if whole else b""
    if not whole or digest_of(content) != digest:
        raise DamagedStore(f"the patch store {path} is truncated or damaged. {REMAKE}")
    try:
        index = msgspec.msgpack.decode(content, type=StoreIndex)
        _check_places(index, offset)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DamagedStore(f"the index of the patch store {path} is wrong ({error}). {REMAKE}") from error
    return index


def _check_places(index: StoreIndex, end: int) -> None:
    """Check that all images lie between the header and the index, because a GPU does not check addresses.

    Raises:
        ValueError: an image or the scale is wrong; the message names it.
    """
    scale = index.source.scale
    if not 1 <= scale <= _LARGEST_SCALE:
        raise ValueError(f"scale {scale}")
    for image in index.images:
        if not (_HEADER.size <= image.offset < end and image.lq_height >= 1 <= image.lq_width):
            raise ValueError(f"{image.hr.name!r:.80} at {image.offset}")
        if image.lq_offset(scale) + image.lq_bytes(scale) > end:
            raise ValueError(f"{image.hr.name!r:.80} would have {image.lq_width}x{image.lq_height} pixels")


class StoreFile:
    """An open patch store: its index, and its pixels as a read-only memory map.

    The file is mapped at the first use of the pixels. The object can be pickled.

    Raises:
        DataError: see :func:`read_index`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.index = read_index(path)
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index.images)

    @property
    def pixels(self) -> np.ndarray:
        """The whole file as uint8, (bytes,)."""
        if self._pixels is None:
            self._pixels = np.memmap(self.path, dtype=np.uint8, mode="r").view(np.ndarray)
        return self._pixels

    def gt(self, number: int) -> np.ndarray:
        """Return GT image ``number``: uint8 RGB (3, H, W), a view of the map."""
        image, scale = self.index.images[number], self.index.source.scale
        block = self.pixels[image.offset : image.offset + image.gt_bytes(scale)]
        return block.reshape(3, image.lq_height * scale, image.lq_width * scale)

    def lq(self, number: int) -> np.ndarray:
        """Return LQ image ``number``: uint8 RGB (3, h, w), a view of the map; (3, 0, 0) if there is none."""
        image, source = self.index.images[number], self.index.source
        size = (0, 0) if source.gt_alone else (image.lq_height, image.lq_width)
        offset = image.lq_offset(source.scale)
        return self.pixels[offset : offset + image.lq_bytes(source.scale)].reshape(3, *size)

    def is_intact(self, number: int) -> bool:
        """Whether the pixels of an image match their checksum. Reads all of them."""
        return digest_of(self.gt(number), self.lq(number)) == self.index.images[number].digest

    def check_sources(self, check: CheckSource, set_name: str) -> None:
        """Refuse the store if its source images changed since it was built.

        Args:
            check: ``always``; ``if_present``: only if the source folders exist; ``never``.
            set_name: name of the data set, for messages.

        Raises:
            DataError: the source images changed or are missing.
        """
        source = self.index.source
        absent = [folder for folder in (source.hr_folder, source.lr_folder) if folder and not os.path.isdir(folder)]
        if check == "never" or (absent and check == "if_present"):
            return
        if absent:
            raise DataError(
                f"cannot check that the patch store {self.path} is up to date: its source {absent[0]} does not exist. "
                f"If you moved it on purpose, set check_source: if_present in data set {set_name!r}."
            )
        change = self.index.first_change()
        if change:
            raise DataError(
                f"the patch store {self.path} is out of date: {change}. Rebuild it with safmn prepare store, "
                f"or set check_source: never in data set {set_name!r}."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}
