"""The file of a patch store: decoded images behind one another, so that a crop is a slice of a memory map.

``header | pixels of image 0: GT, LQ | pixels of image 1 ... | index``. Pixels are uint8 RGB, planar (3, H, W), each
block on a multiple of 64 bytes; the index (msgpack) holds sizes, offsets, a checksum of each image's pixels, and what
the source files were. The header points to the index and is written when all else is on the disk. A store of scale 1
that was made without LR images holds GT images alone, for training that degrades them.
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
_REMAKE = "Make it anew with safmn prepare store."
_LARGEST_SCALE = 64
_CHECKED_AT_MOST = 4096  # source files looked at when a store is opened: start-up must not grow with the data


def digest_of(*blocks: bytes | np.ndarray) -> bytes:
    """BLAKE2b, 16 bytes, of the blocks (of arrays: their elements in C order) in turn."""
    digest = hashlib.blake2b(digest_size=16)
    for block in blocks:
        digest.update(block if isinstance(block, bytes) else block.reshape(-1).data)
    return digest.digest()


def aligned(size: int) -> int:
    """``size`` rounded up to the alignment of blocks."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class SourceFile(msgspec.Struct, frozen=True, array_like=True):
    """An image file as it was when the store was built."""

    name: str
    size: int
    mtime_ns: int
    digest: bytes

    def is_unchanged(self, folder: str) -> bool:
        """Whether the file is the same: by size and time, or where only the time differs (a copy), by content.

        Raises:
            OSError: there is no such file.
        """
        path = Path(folder, self.name)
        now = path.stat()
        if now.st_size != self.size:
            return False
        return now.st_mtime_ns == self.mtime_ns or digest_of(path.read_bytes()) == self.digest


class StoredImage(msgspec.Struct, frozen=True, array_like=True):
    """One pair of images in a store. ``lr`` is None where the LQ image was made from the GT image, or there is none."""

    offset: int
    lq_height: int
    lq_width: int
    digest: bytes
    hr: SourceFile
    lr: SourceFile | None

    def lq_bytes(self, scale: int) -> int:
        """Bytes of the LQ pixels: none in a store of GT images alone."""
        return 0 if scale == 1 and self.lr is None else 3 * self.lq_height * self.lq_width

    def gt_bytes(self, scale: int) -> int:
        """Bytes of the GT pixels."""
        return 3 * self.lq_height * self.lq_width * scale * scale

    def lq_offset(self, scale: int) -> int:
        """Where the LQ pixels start in the file."""
        return self.offset + aligned(self.gt_bytes(scale))

    def end(self, scale: int) -> int:
        """Where the next image starts in the file."""
        return self.lq_offset(scale) + aligned(self.lq_bytes(scale))


class Source(msgspec.Struct, frozen=True):
    """Where the images of a store came from.

    ``lr_folder`` is None where LQ was made from GT by MATLAB's bicubic, or, at scale 1, where there is no LQ.
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
    """What a store holds."""

    source: Source
    images: list[StoredImage]

    def first_change(self, *, at_most: int = _CHECKED_AT_MOST) -> str | None:
        """What is different now in the sources, in words; None when nothing is.

        Looks at the names in the folders and at up to ``at_most`` files, evenly spread.
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
    """Write index and header to a file whose pixels end at ``end``; each is on the disk before the next is written."""
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
    """A patch store that is cut short, or whose index is damaged."""


def read_index(path: str | Path) -> StoreIndex:
    """The index of a store.

    Raises:
        DataError: the file is missing, or no patch store.
        DamagedStore: it is cut short, or its index is damaged.
    """
    if not os.path.isfile(path):
        raise DataError(f"no such patch store: {path}. Make one with: safmn prepare store --hr DIR --scale S -o {path}")
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:8] != _MAGIC:
            raise DataError(
                f"{path} is no patch store, or one of another version. Delete it, if so, and make it anew with safmn "
                "prepare store."
            )
        _, offset, length, digest = _HEADER.unpack(header)
        whole = offset + length == os.fstat(file.fileno()).st_size
        content = read_at(file, offset, length) if whole else b""
    if not whole or digest_of(content) != digest:
        raise DamagedStore(f"the patch store {path} is cut short or damaged. {_REMAKE}")
    try:
        index = msgspec.msgpack.decode(content, type=StoreIndex)
        _check_places(index, offset)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DamagedStore(f"the index of the patch store {path} is wrong ({error}). {_REMAKE}") from error
    return index


def _check_places(index: StoreIndex, end: int) -> None:
    """Check that all images lie between the header and the index: a GPU would read whatever is elsewhere.

    Raises:
        ValueError: one does not; names it.
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
    """An open patch store: its index, and its pixels as a read-only memory map (made when first used; may be pickled).

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
        """GT image: uint8 RGB (3, H, W), a view of the map."""
        image, scale = self.index.images[number], self.index.source.scale
        block = self.pixels[image.offset : image.offset + image.gt_bytes(scale)]
        return block.reshape(3, image.lq_height * scale, image.lq_width * scale)

    def lq(self, number: int) -> np.ndarray:
        """LQ image: uint8 RGB (3, h, w), a view of the map; (3, 0, 0) where there is none."""
        image, source = self.index.images[number], self.index.source
        size = (0, 0) if source.gt_alone else (image.lq_height, image.lq_width)
        offset = image.lq_offset(source.scale)
        return self.pixels[offset : offset + image.lq_bytes(source.scale)].reshape(3, *size)

    def is_intact(self, number: int) -> bool:
        """Whether the pixels of an image are those that were written (reads all of them)."""
        return digest_of(self.gt(number), self.lq(number)) == self.index.images[number].digest

    def check_sources(self, check: CheckSource, set_name: str) -> None:
        """Refuse the store where its source images are no longer what they were.

        Args:
            check: ``always``; ``if_present``: unless their folders are gone; ``never``.
            set_name: the data set that the message names.

        Raises:
            DataError: they have changed, or are not there.
        """
        source = self.index.source
        absent = [folder for folder in (source.hr_folder, source.lr_folder) if folder and not os.path.isdir(folder)]
        if check == "never" or (absent and check == "if_present"):
            return
        if absent:
            raise DataError(
                f"cannot check that the patch store {self.path} is up to date: its source {absent[0]} is not there. If "
                f"it was moved away on purpose, set check_source: if_present in data set {set_name!r}."
            )
        change = self.index.first_change()
        if change:
            raise DataError(
                f"the patch store {self.path} is out of date: {change}. Make it anew with safmn prepare store, "
                f"or set check_source: never in data set {set_name!r}."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}
