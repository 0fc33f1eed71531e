"""Weight files that claim more than they contain, built by hand.

``python tests/hostile_files.py`` loads each file and prints its size, the time and memory that loading takes, and the
result or the error message.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from safmn.registry import ARCH_REGISTRY, build

SECTION = {"type": "SAFMN", "dim": 8, "n_blocks": 2, "ffn_scale": 1.5, "upscaling_factor": 2}
ROOT = "archive"


class Storage:
    """A storage as a pickle describes it: key, claimed number of values, and type."""

    def __init__(self, key: str, values: int, kind: Any = torch.FloatStorage) -> None:
        self.key, self.values, self.kind = key, values, kind


class Claim:
    """A tensor as a pickle describes it: storage, shape, strides and offset."""

    def __init__(self, storage: Storage, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.arguments = (storage, offset, shape, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Storage):
            return "storage", value.kind, value.key, "cpu", value.values
        return None


def pickled(content: Any, *, protocol: int = 2) -> bytes:
    """Return the pickle of a state dict of :class:`Claim` values."""
    file = io.BytesIO()
    _Pickler(file, protocol).dump(content)
    return file.getvalue()


def archive(
    path: Path,
    content: Any,
    data: Mapping[str, bytes],
    *,
    compression: int = zipfile.ZIP_STORED,
    byteorder: bytes = b"little",
) -> Path:
    """Write a ``.pth`` file in PyTorch's zip format; ``content`` is a state dict or the bytes of a pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{ROOT}/data.pkl", content if isinstance(content, bytes) else pickled(content))
        file.writestr(f"{ROOT}/byteorder", byteorder)
        for key, value in data.items():
            file.writestr(f"{ROOT}/data/{key}", value)
        file.writestr(f"{ROOT}/version", b"3\n")
    return path


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    found, step = [], 1
    for side in reversed(shape):
        found.append(step)
        step *= side
    return tuple(reversed(found))


def shapes(**change: Any) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a SAFMN network's parameters."""
    with torch.device("meta"):
        network = build(ARCH_REGISTRY, SECTION | change)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def expanded(path: Path, dim: int = 3000) -> Path:
    """Write a wide SAFMN in which every tensor expands one value with stride 0."""
    one = Storage("0", 1)
    return archive(
        path, {n: Claim(one, s, (0,) * len(s)) for n, s in shapes(dim=dim).items()}, {"0": struct.pack("<f", 0.1)}
    )


def one_expanded(path: Path) -> Path:
    """Write a tensor of 5 billion values that expands one value."""
    return archive(path, {"to_feat.weight": Claim(Storage("0", 1), (5_000_000_000,), (0,))}, {"0": bytes(4)})


def overlapping(path: Path) -> Path:
    """Write a tensor with overlapping rows: 40,000 x 40,000 from 80,000 values."""
    return archive(path, {"w": Claim(Storage("0", 80_000), (40_000, 40_000), (1, 1))}, {"0": bytes(320_000)})


def many_views(path: Path) -> Path:
    """Write three thousand tensors that share one 4 MB storage and each cover almost all of it."""
    storage = Storage("0", 1_000_000)
    views = {f"t{k}": Claim(storage, (1_000_000 - k,), (1,), k) for k in range(3000)}
    return archive(path, views, {"0": bytes(4_000_000)})


def deflated_storage(path: Path, gigabytes: int = 3) -> Path:
    """Write a storage of zeros that is compressed by a factor of about a thousand."""
    size = gigabytes * 250_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{ROOT}/data.pkl", pickled({"w": Claim(Storage("0", size), (size,), (1,))}))
        file.writestr(f"{ROOT}/version", b"3\n")
        with file.open(f"{ROOT}/data/0", "w", force_zip64=True) as member:
            for _ in range(gigabytes * 10):
                member.write(bytes(100_000_000))
    return path


def deflated_pickle(path: Path) -> Path:
    """Write a compressed pickle with 100 million bytes of operations that do nothing."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{ROOT}/version", b"3\n")
        with file.open(f"{ROOT}/data.pkl", "w") as member:
            member.write(b"\x80\x02")
            for _ in range(1):
                member.write(b"N0" * 50_000_000)  # push None, pop it
            member.write(b"}.")
    return path


def lying_deflate(path: Path) -> Path:
    """Write an archive whose directory states 40 bytes for a compressed storage of 20 million."""
    archive(
        path, {"w": Claim(Storage("0", 10), (10,), (1,))}, {"0": bytes(2 * 10**7)}, compression=zipfile.ZIP_DEFLATED
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 2 * 10**7), struct.pack("<I", 40)))
    return path


def storage_beyond_file(path: Path) -> Path:
    """Write a storage that claims 10 GB but has 40 bytes."""
    size = 2_500_000_000
    return archive(path, {"w": Claim(Storage("0", size), (size,), (1,))}, {"0": bytes(40)})


def tensor_beyond_storage(path: Path) -> Path:
    """Write a tensor that begins beyond the end of its storage."""
    return archive(path, {"w": Claim(Storage("0", 10), (10,), (1,), 10)}, {"0": bytes(40)})


def negative(path: Path) -> Path:
    """Write a tensor with a negative stride."""
    return archive(path, {"w": Claim(Storage("0", 10), (10,), (-1,), 9)}, {"0": bytes(40)})


def wrapping(path: Path) -> Path:
    """Write a tensor whose sizes multiply to 0 modulo 2**64."""
    return archive(path, {"w": Claim(Storage("0", 1), (2**32, 2**32), (0, 0))}, {"0": bytes(4)})


def legacy(path: Path, content: Any, storages: Mapping[str, tuple[int, bytes]]) -> Path:
    """Write a file in PyTorch's format before 1.6: pickles, then the size and values of each storage."""
    with path.open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001}):
            file.write(pickle.dumps(value, 2))
        file.write(content if isinstance(content, bytes) else _legacy_pickle(content))
        file.write(pickle.dumps(list(storages), 2))
        for values, data in storages.values():
            file.write(struct.pack("<q", values) + data)
    return path


def _legacy_pickle(content: Any) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Storage):
                return "storage", value.kind, value.key, "cpu", value.values, None
            return None

    file = io.BytesIO()
    Pickler(file, 2).dump(content)
    return file.getvalue()


def legacy_huge(path: Path) -> Path:
    """Write, in the old format, a storage that claims 10 GB but has 40 bytes."""
    size = 2_500_000_000
    return legacy(path, {"w": Claim(Storage("0", size), (size,), (1,))}, {"0": (size, bytes(40))})


def legacy_expanded(path: Path) -> Path:
    """Write, in the old format, a wide SAFMN in which every tensor expands one value with stride 0."""
    one = Storage("0", 1)
    claims = {n: Claim(one, s, (0,) * len(s)) for n, s in shapes(dim=3000).items()}
    return legacy(path, claims, {"0": (1, struct.pack("<f", 0.1))})


def sparse(path: Path) -> Path:
    """Write a sparse tensor of 10**9 x 10**9 with one value."""
    torch.save({"w": torch.sparse_coo_tensor([[0], [0]], [1.0], (10**9, 10**9))}, path)
    return path


def meta(path: Path) -> Path:
    """Write a tensor of 4 TB without values (device "meta")."""
    torch.save({"w": torch.empty(10**12, device="meta")}, path)
    return path


def quantised(path: Path) -> Path:
    """Write a quantised tensor."""
    torch.save({"w": torch.quantize_per_tensor(torch.rand(3, 3), 0.1, 0, torch.qint8)}, path)
    return path


def nested_key(path: Path) -> Path:
    """Write a dictionary with a key whose hash takes 2**60 steps."""
    key = b"(t" + b"q\x00" + b"h\x00\x86q\x00" * 60
    return archive(path, b"\x80\x02}" + key + b"Ns.", {})


def laughs(path: Path) -> Path:
    """Write nested lists: a few hundred bytes that print as a gigabyte (a "billion laughs" attack)."""
    return archive(
        path, b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00lq\x00" * 12 + b".", {}
    )


def giant_memo(path: Path) -> Path:
    """Write a pickle with a memo index of 4 billion."""
    return archive(path, b"\x80\x02}r\xff\xff\xff\xff.", {})


def giant_bytes(path: Path) -> Path:
    """Write a pickle with a string that claims 3 GB."""
    return archive(path, b"\x80\x02X\x00\x00\x00\xc0abc.", {})


def reduce_bytearray(path: Path) -> Path:
    """Write a pickle that calls bytearray(6 * 10**9)."""
    number = (6 * 10**9).to_bytes(5, "little") + b"\x00"
    return archive(path, b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + number + b"\x85R.", {})


def new_storage(path: Path) -> Path:
    """Write a pickle that calls torch.FloatTensor(1.5 * 10**9)."""
    number = (1_500_000_000).to_bytes(4, "little")
    return archive(path, b"\x80\x02ctorch\nFloatTensor\nJ" + number + b"\x85\x81.", {})


def safetensors_file(path: Path, header: Any, data: bytes = b"") -> Path:
    """Write a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def safetensors_huge(path: Path) -> Path:
    """Write a safetensors header that claims 10 GB."""
    return safetensors_file(path, {"w": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10**10]}})


def safetensors_overlap(path: Path) -> Path:
    """Write a safetensors file with two tensors in the same bytes."""
    one = {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}
    return safetensors_file(path, {"a": one, "b": one}, bytes(40))


def safetensors_twice(path: Path) -> Path:
    """Write a safetensors header that contains a name twice."""
    first, second = (f'"w":{{"dtype":"F32","shape":[1],"data_offsets":[{at},{at + 4}]}}' for at in (0, 4))
    return safetensors_file(path, f"{{{first},{second}}}".encode(), bytes(8))


def safetensors_long_header(path: Path) -> Path:
    """Write a safetensors header that claims a length of 2**60 bytes."""
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    return path


def many_blocks(path: Path) -> Path:
    """Write names as in a SAFMN with 1,000 blocks, all but the first with only one value."""
    one = Storage("0", 9 * 8 * 12)
    claims = {n: Claim(one, s, strides(s)) for n, s in shapes(n_blocks=1).items()}
    claims |= {f"feats.{k}.x": Claim(one, (1,), (1,)) for k in range(1, 1_000)}
    return archive(path, claims, {"0": bytes(4 * 9 * 8 * 12)})


def foreign_blocks(path: Path) -> Path:
    """Write an SRVGGNetCompact whose last layer has the number 3,000,000."""
    size = 64 * 64 * 9
    one = Storage("0", size)
    names = {
        "body.0.weight": (64, 3, 3, 3),
        "body.0.bias": (64,),
        "body.1.weight": (64,),
        "body.2.weight": (64, 64, 3, 3),
    }
    names |= {"body.3000000.weight": (12, 64, 3, 3), "body.3000000.bias": (12,)}
    return archive(path, {n: Claim(one, s, strides(s)) for n, s in names.items()}, {"0": bytes(4 * size)})


def gz(path: Path) -> Path:
    """Write a file that is compressed with gzip as a whole."""
    path.write_bytes(gzip.compress(b"weights" * 1000))
    return path


HOSTILE: list[Callable[[Path], Path]] = [
    expanded,
    one_expanded,
    overlapping,
    many_views,
    deflated_storage,
    deflated_pickle,
    lying_deflate,
    storage_beyond_file,
    tensor_beyond_storage,
    negative,
    wrapping,
    legacy_huge,
    legacy_expanded,
    sparse,
    meta,
    quantised,
    nested_key,
    laughs,
    giant_memo,
    giant_bytes,
    reduce_bytearray,
    new_storage,
    safetensors_huge,
    safetensors_overlap,
    safetensors_twice,
    safetensors_long_header,
    many_blocks,
    foreign_blocks,
    gz,
]


_LOAD = """
import resource, signal, sys, time
import torch
from safmn import compat, weights
compat.repair_torchvision()
import spandrel
signal.alarm(100)
limit = 32 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
base, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    said = repr(type(weights.load_network(sys.argv[1])))
except BaseException as error:
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
print(f"{time.perf_counter() - start:7.1f} s {grown / 1024:7.0f} MiB  {said.replace(sys.argv[1], 'FILE')}")
"""


def main() -> None:
    """Load every file in a separate process and print the measurements."""
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for make in HOSTILE:
            path = make(Path(folder, f"{make.__name__}.pth"))
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", _LOAD, str(path)], capture_output=True, text=True
            )
            said = done.stdout.strip() or f"status {done.returncode} {done.stderr.strip()[-100:]}"
            sys.stdout.write(f"{make.__name__:24} {path.stat().st_size / 1000:9.1f} kB {said}\n")
            sys.stdout.flush()
            path.unlink()


if __name__ == "__main__":
    main()
