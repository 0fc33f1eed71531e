"""Read files of ``torch.save`` without running their pickles, in both formats: the zip archive and the legacy format.

All sizes are checked before memory is allocated. Every storage must be in the file with the size that the pickle
claims, every tensor must lie within its storage, and all tensors together must not be much larger than the file. A view
with stride 0, a compressed archive or many views of one storage could otherwise expand a small file enormously.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safmn.errors import WeightsError, first_line
from safmn.weights.pickles import DamagedPickle, Storage, StoredTensor, read_pickle

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # torch/serialization.py
_SPARE, _TIMES = 2**26, 4  # limit on the tensors' bytes: 64 MiB plus four times the file's size
_LONGEST_PICKLE = 2**26  # bytes
_LOCAL_HEADER = 30  # bytes before the name in a member's header
_ENCRYPTED = 0x1
_DEEPEST = 64  # nested containers


@dataclass(frozen=True)
class _Block:
    """The position of bytes in the file: ``length`` bytes from ``start``, ``size`` bytes after decompression."""

    start: int
    length: int
    size: int
    crc: int
    deflated: bool


class TorchFile:
    """The content of a file of ``torch.save``, with descriptions in place of its tensors.

    Args:
        path: the file.

    Attributes:
        content: dictionaries, lists and plain values, with ``StoredTensor`` and ``Unusable`` in place of tensors.

    Raises:
        WeightsError: the file is damaged, is not from ``torch.save``, or holds Python objects; the message does not
            name the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._allowed = _SPARE + _TIMES * path.stat().st_size
        self._storages: dict[str, Storage] = {}
        self._blocks: dict[str, _Block] = {}
        self._foreign_endian = False
        with path.open("rb") as file:
            is_zip = file.read(4) == ZIP_MAGIC
        try:
            self.content = self._read_zip() if is_zip else self._read_legacy()
        except WeightsError:
            raise
        except Exception as error:  # a damaged archive can raise anything
            raise _damaged(error) from error

    def tensors(self, content: Any) -> Any:
        """Return :attr:`content`, or a part of it, with real tensors on the CPU, in the file's precision.

        Raises:
            WeightsError: the content claims more than the file holds, or a checksum is wrong.
        """
        wanted = list({id(tensor): tensor for tensor in _stored(content)}.values())
        storages = {tensor.storage.key: tensor.storage for tensor in wanted}
        try:
            self._check(wanted, storages)
            with self.path.open("rb") as file:
                values = {key: self._values(file, storage) for key, storage in storages.items()}
            made = {id(t): _view(values[t.storage.key], t) for t in wanted}
        except WeightsError:
            raise
        except (DamagedPickle, zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:
            raise _damaged(error) from error
        return _replaced(content, made)

    def _check(self, tensors: list[StoredTensor], storages: dict[str, Storage]) -> None:
        """Check the claimed sizes against the file."""
        for key, storage in storages.items():
            claimed, block = storage.values * storage.dtype.itemsize, self._blocks.get(key)
            if block is None:
                raise DamagedPickle(f"the values of storage {key} are missing")
            if block.size != claimed:
                raise DamagedPickle(f"storage {key} has {block.size} bytes instead of {claimed}")
        inflated = sum(self._blocks[key].size for key in storages)
        viewed = sum(tensor.nbytes for tensor in tensors)
        if max(inflated, viewed) > self._allowed:
            raise WeightsError(
                f"its tensors would take {max(inflated, viewed) / 1e6:,.0f} MB, far more than the file's "
                f"{self.path.stat().st_size / 1e6:,.3f} MB. The file is refused because it is compressed or repeats a "
                "few values. Ask for a file with plain values."
            )

    def _read_zip(self) -> Any:
        with zipfile.ZipFile(self.path) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise zipfile.BadZipFile("two members have the same name")
            if any(name.endswith("constants.pkl") for name in names):
                raise WeightsError(
                    "a TorchScript archive, not a state dict: save the network's state_dict() with the original code."
                )
            pickle = next((name for name in names if name.endswith("data.pkl") and name.count("/") <= 1), None)
            if pickle is None:
                raise WeightsError(_other_archive(names))
            root = pickle.removesuffix("data.pkl")
            members = {info.filename.removeprefix(root): info for info in archive.infolist()}
        with self.path.open("rb") as file:
            for name, info in members.items():
                if name.startswith("data/"):
                    self._blocks[name.removeprefix("data/")] = _block(file, info)
            if "byteorder" in members:
                self._foreign_endian = self._bytes(file, _block(file, members["byteorder"]), 64) == b"big"
            program = self._bytes(file, _block(file, members["data.pkl"]), min(_LONGEST_PICKLE, self._allowed))
        return read_pickle(bytes(program), self._storages)

    def _read_legacy(self) -> Any:
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            for wanted in (_LEGACY_MAGIC, _LEGACY_VERSION):
                if read_pickle(whole, {}) != wanted:  # type: ignore[arg-type]  # a map can be read like a file
                    raise WeightsError("not a weight file: a Python pickle that torch.save did not write.")
            read_pickle(whole, {})  # type: ignore[arg-type]  # facts about the machine
            content = read_pickle(whole, self._storages)  # type: ignore[arg-type]
            keys = read_pickle(whole, {})  # type: ignore[arg-type]
            for key in map(str, keys):
                if key not in self._storages:
                    raise DamagedPickle(f"storage {key} is not described")
                (values,) = struct.unpack("<q", whole.read(8))
                size = values * self._storages[key].dtype.itemsize
                if not 0 <= size <= len(whole) - whole.tell():
                    raise DamagedPickle(f"storage {key} claims {size} bytes, more than the file has")
                self._blocks[key] = _Block(whole.tell(), size, size, 0, False)
                whole.seek(size, 1)
        return content

    def _values(self, file: Any, storage: Storage) -> Tensor:
        """Return all values of a storage, shape (values,)."""
        content = self._bytes(file, self._blocks[storage.key], self._allowed)
        if not content:
            return torch.empty(0, dtype=storage.dtype)
        if self._foreign_endian:
            words = np.frombuffer(content, np.dtype(f"u{storage.dtype.itemsize}"))
            words.byteswap(inplace=True)
        return torch.frombuffer(content, dtype=torch.uint8).view(storage.dtype)

    @staticmethod
    def _bytes(file: Any, block: _Block, allowed: int) -> bytearray:
        """Return the bytes of a block, at most ``allowed``; verify the checksum if there is one."""
        if block.size > allowed:
            raise DamagedPickle(f"a member has {block.size} bytes, but only {allowed} are allowed")
        file.seek(block.start)
        content = bytearray(block.length)
        if file.readinto(content) != block.length:
            raise DamagedPickle("the file ends too early")
        if block.deflated:
            # One byte more than the claimed size is enough to detect longer content without decompressing it.
            content = bytearray(zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, block.size + 1))
        if len(content) != block.size or (block.crc and zlib.crc32(content) != block.crc):
            raise DamagedPickle("a checksum or a size is wrong")
        return content


def _block(file: Any, info: zipfile.ZipInfo) -> _Block:
    """Return the position of the content of an archive's member."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & _ENCRYPTED:
        raise zipfile.BadZipFile(f"{info.filename} is encrypted or has an unknown compression")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(ZIP_MAGIC):
        raise zipfile.BadZipFile(f"{info.filename} is not where the archive says")
    start = info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
    end = file.seek(0, 2)
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if start + info.compress_size > end or not (deflated or info.compress_size == info.file_size):
        raise zipfile.BadZipFile(f"{info.filename} claims {info.compress_size} bytes, more than the file has")
    return _Block(start, info.compress_size, info.file_size, info.CRC, deflated)


def _other_archive(names: list[str]) -> str:
    """Describe a zip archive that PyTorch did not write."""
    if any(name.endswith(".npy") for name in names):
        return "not a weight file, but a NumPy archive (.npz)."
    inside = [name for name in names if name.endswith((".pth", ".pt", ".ckpt", ".safetensors"))]
    if inside:
        return f"not a weight file, but a zip archive that contains {inside[0]!r:.80}: unpack it and use that file."
    shown = ", ".join(f"{name!r:.40}" for name in names[:3])
    return f"not a weight file, but another zip archive (it contains {shown or 'nothing'})."


def _damaged(error: Exception) -> WeightsError:
    return WeightsError(f"damaged or incomplete PyTorch file ({first_line(error):.200}).")


def _children(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        yield from content.values()
    elif isinstance(content, (list, tuple)):
        yield from content


def _stored(content: Any) -> Iterator[StoredTensor]:
    """Yield every tensor description in nested containers; visit each container once."""
    seen, waiting = {id(content)}, [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, StoredTensor):
            yield part
        for child in _children(part):
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def _replaced(content: Any, made: dict[int, Tensor]) -> Any:
    """Return the nested containers with tensors in place of their descriptions."""
    done: dict[int, Any] = {}

    def replace(part: Any, depth: int) -> Any:
        if isinstance(part, StoredTensor):
            return made[id(part)]
        if not isinstance(part, (dict, list, tuple)):
            return part
        if depth > _DEEPEST:
            raise WeightsError("its content is nested too deeply for weights or a training state.")
        if id(part) not in done:
            children = [replace(child, depth + 1) for child in _children(part)]
            done[id(part)] = dict(zip(part, children, strict=True)) if isinstance(part, dict) else type(part)(children)
        return done[id(part)]

    return replace(content, 0)


def _view(values: Tensor, tensor: StoredTensor) -> Tensor:
    typed = values if values.dtype == tensor.dtype else values.view(tensor.dtype)
    return typed.as_strided(tensor.shape, tensor.stride, tensor.offset)
