"""``safmn prepare download``: download the published data sets from their official hosts and lay them out.

Each archive is downloaded to ``<root>/downloads``, resuming an earlier attempt, and checked against its known size and
checksum. Then its images are extracted into place and the archive is deleted.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

import requests
import urllib3
from tqdm import tqdm

from safmn.errors import DataError, exit_status
from safmn.prepare import arguments as arguments_of
from safmn.prepare.arguments import DATA_SETS
from safmn.prepare.parallel import progress
from safmn.system.console import say_line
from safmn.system.files import atomic_path, replace

_CHUNK = 2**16  # bytes; a broken connection loses less than this
_TIMEOUT = (10, 60)  # seconds: to connect, and between bytes
_TRIES = 4  # failed attempts in a row that each bring less than _CHUNK
_WATCHED, _SLOWEST = 60, 2**12  # seconds of a measurement, and the bytes per second that it requires
_SPARE, _TIMES = 2**26, 4  # limit on extracted bytes: 64 MiB plus four times the archive's size


@dataclass(frozen=True)
class Archive:
    """A file on an official host.

    Attributes:
        url: its address.
        size: in bytes; None if unknown.
        digest: ``"<algorithm>:<hex>"``; None if no published one is known.
        at_most: upper limit in bytes, used if the size is unknown; anything longer is not the file.
    """

    url: str
    size: int | None = None
    digest: str | None = None
    at_most: int = 30 * 10**9

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]

    @property
    def limit(self) -> int:
        """The largest allowed size in bytes."""
        return self.at_most if self.size is None else self.size


@dataclass(frozen=True)
class Part:
    """Where an archive's members go: those matching ``pattern`` go to ``target``, filled with the pattern's groups.

    ``counts`` pairs glob patterns below the root with the number of files that match them when the part is complete.
    """

    archive: Archive
    pattern: str
    target: str
    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class DataSet:
    """A data set: its description, its parts, and the commands to run next, with the root filled in."""

    about: str
    parts: tuple[Part, ...]
    then: tuple[str, ...] = ()


def _div2k(name: str, size: int, sha256: str) -> Archive:
    # Sizes and checksums: tensorflow_datasets/datasets/div2k/checksums.tsv (TensorFlow Datasets).
    return Archive(f"https://data.vision.ee.ethz.ch/cvl/DIV2K/{name}", size, f"sha256:{sha256}")


_TRAIN_HR = _div2k("DIV2K_train_HR.zip", 3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335")
_VALID_HR = _div2k("DIV2K_valid_HR.zip", 448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc")
_VALID_LR = {
    2: _div2k(
        "DIV2K_valid_LR_bicubic_X2.zip", 117763600, "60eed9875c697df51204aa579e2a699e1d5215095788a097ff54dd17e2664d57"
    ),
    3: _div2k(
        "DIV2K_valid_LR_bicubic_X3.zip", 54513392, "04b9a2ed3b4a0715d3924d3ae8514830c3328fac8d30512ce716d6f419e052a3"
    ),
    4: _div2k(
        "DIV2K_valid_LR_bicubic_X4.zip", 31505881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553"
    ),
}
# EDSR's host publishes no checksums. These two are from torchSR (torchsr/datasets/benchmarks.py and flickr2k.py).
_EDSR = "https://cv.snu.ac.kr/research/EDSR"
_FLICKR2K = Archive(f"{_EDSR}/Flickr2K.tar", digest="md5:5d3f39443d5e9489bff8963f8f26cb03")
_BENCHMARK = Archive(f"{_EDSR}/benchmark.tar", digest="md5:4ace41d33c2384b97e6b320cd0afd6ba", at_most=10**9)


def _hr(archive: Archive, folder: str, names: str, count: int) -> Part:
    pattern = r"(?:.*/)?(?:DIV2K_(?:train|valid)_HR|Flickr2K_HR)/(?P<name>[^/.]+\.png)"
    return Part(archive, pattern, f"{folder}/{{name}}", ((f"{folder}/{names}", count),))


def _valid_lr(scale: int) -> Part:
    folder = f"{_VALIDATION}/LR_bicubic/X{scale}"
    pattern = rf"(?:.*/)?X{scale}/(?P<name>[^/.]+\.png)"
    return Part(_VALID_LR[scale], pattern, f"{folder}/{{name}}", ((f"{folder}/????x{scale}.png", 100),))


_VALIDATION = "benchmark/DIV2K_val100"
_DIV2K_NAMES, _FLICKR2K_NAMES = "????.png", "??????.png"  # 0001.png and 000001.png
_BENCHMARK_SIZES = {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100}
_BENCHMARKS = Part(
    _BENCHMARK,
    r"(?:.*/)?(?P<set>Set5|Set14|B100|Urban100)/(?P<rest>HR|LR_bicubic/X\d)/(?P<name>[^/.]+\.png)",
    "benchmark/{set}/{rest}/{name}",
    tuple((f"benchmark/{name}/HR/[!.]*.png", count) for name, count in _BENCHMARK_SIZES.items()),
)
_MAKE_LR = "safmn prepare lr --hr {root}/%s/HR --scales 2 3 4"
_CUT = "safmn prepare subimages --hr {root}/%s/HR --scales 2 3 4"

SETS = {
    "df2k": DataSet(
        DATA_SETS["df2k"],
        (_hr(_TRAIN_HR, "DF2K/HR", _DIV2K_NAMES, 800), _hr(_FLICKR2K, "DF2K/HR", _FLICKR2K_NAMES, 2650)),
        (_MAKE_LR % "DF2K", _CUT % "DF2K"),
    ),
    "div2k": DataSet(
        DATA_SETS["div2k"],
        (_hr(_TRAIN_HR, "DIV2K/HR", _DIV2K_NAMES, 800),),
        (_MAKE_LR % "DIV2K", _CUT % "DIV2K"),
    ),
    "flickr2k": DataSet(
        DATA_SETS["flickr2k"],
        (_hr(_FLICKR2K, "Flickr2K/HR", _FLICKR2K_NAMES, 2650),),
        (_MAKE_LR % "Flickr2K", _CUT % "Flickr2K"),
    ),
    "div2k-val": DataSet(
        DATA_SETS["div2k-val"],
        (_hr(_VALID_HR, f"{_VALIDATION}/HR", _DIV2K_NAMES, 100), *map(_valid_lr, _VALID_LR)),
    ),
    "benchmark": DataSet(DATA_SETS["benchmark"], (_BENCHMARKS,)),
}


def download(parts: Sequence[Part], root: Path, *, keep: bool = False) -> None:
    """Download the missing parts of a set and lay them out below ``root``.

    Raises:
        DataError: an archive is unavailable or damaged; the message says what to do by hand.
    """
    for part in parts:
        archive = root / "downloads" / part.archive.name
        if is_complete(part, root):
            continue
        fetch(part.archive, archive)
        extract(archive, part, root)
        missing = [f"{c - n} of {c} {p}" for p, c in part.counts if (n := _count(root, p)) < c]
        if missing:
            raise DataError(f"{archive} is not complete: {', '.join(missing)} are missing in {root}")
        if not keep:
            archive.unlink()


def is_complete(part: Part, root: Path) -> bool:
    """Return whether all images exist and no archive is left; an archive may be only partly extracted."""
    left = (root / "downloads" / part.archive.name).exists()
    return not left and all(_count(root, pattern) >= count for pattern, count in part.counts)


def _count(root: Path, pattern: str) -> int:
    return sum(1 for _ in root.glob(pattern))


def fetch(archive: Archive, path: Path, *, tries: int = _TRIES, pause: float = 2.0) -> None:
    """Download the archive to ``path``; only verify it if it is already there, resume if ``path.part`` exists.

    Raises:
        DataError: the archive is unavailable or not the expected file; the message says what to do by hand.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = path.with_name(f"{path.name}.part")
        _download(archive, begun, path, tries, pause)
        try:
            _verify(archive, begun)
        except DataError:
            begun.unlink()
            raise
        replace(begun, path)
    else:
        _verify(archive, path)


def _download(archive: Archive, begun: Path, path: Path, tries: int, pause: float) -> None:
    failed = 0
    while True:
        before = _size(begun)
        try:
            return _download_once(archive, begun)
        except requests.RequestException as error:
            failed = 1 if _size(begun) > before else failed + 1
            if failed >= tries or _is_final(error):
                raise DataError(
                    f"cannot download {archive.url}: {_reason(error)}\n"
                    f"  {_size(begun) / 1e6:.1f} MB are kept; run the same command again to resume.\n"
                    f"  By hand: get the file from another source, save it as {path}, and run the same command again."
                ) from error
            time.sleep(pause)
        except OSError as error:  # a disk error
            raise DataError(
                f"{begun} cannot be written ({error.strerror or error}): {_free(begun)}. Free some space and run the "
                f"same command again; it keeps the {_size(begun) / 1e6:.1f} MB that are already there."
            ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _free(path: Path) -> str:
    return f"{shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free there"


def _is_final(error: requests.RequestException) -> bool:
    """Return whether a retry is useless: the file does not exist, access is denied, or a redirect is unusable.

    A redirect is unusable if it leads to another scheme (``file:``) or into a loop.
    """
    if isinstance(error, (requests.exceptions.InvalidSchema, requests.TooManyRedirects)):
        return True
    return error.response is not None and 400 <= error.response.status_code < 500


def _reason(error: requests.RequestException) -> str:
    """Return the message of the innermost cause: requests and urllib3 wrap it several times."""
    cause: BaseException = error
    while cause.args and isinstance(cause.args[0], BaseException):
        cause = cause.args[0]
    cause = getattr(cause, "reason", None) or cause
    return str(cause.args[0] if cause.args and isinstance(cause.args[0], str) else cause)


def _download_once(archive: Archive, begun: Path) -> None:
    """Make one attempt, starting at the end of ``begun``; keep the received bytes if it fails.

    Raises:
        DataError: the host sends something else: too many bytes, or compressed content.
        requests.RequestException: the connection failed.
        OSError: the file cannot be written.
    """
    start = _size(begun)
    tag = begun.with_name(f"{begun.name}.tag")  # ETag of the version that ``begun`` comes from
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag.exists():
            headers["If-Range"] = tag.read_text(encoding="utf-8")
    with requests.get(archive.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        whole = response.headers.get("Content-Range", "")
        if response.status_code == 416 and whole.endswith(f"/{start}"):
            return  # nothing is missing
        elsewhere = response.status_code == 206 and whole and not whole.startswith(f"bytes {start}-")
        if response.status_code == 416 or elsewhere:
            # Not the same file: the received part is longer, or the host starts at another offset.
            for left in (begun, tag):
                left.unlink(missing_ok=True)
            raise requests.ConnectionError(f"the {start} bytes kept earlier do not fit the file and were removed")
        response.raise_for_status()
        if response.status_code != 206:
            start = 0
        total = _announced(response, archive, start, begun)
        mark = response.headers.get("ETag", "")
        tag.write_text(mark, encoding="utf-8") if mark and not mark.startswith("W/") else tag.unlink(missing_ok=True)
        with (
            begun.open("ab" if start else "wb") as file,
            tqdm(desc=archive.name, total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar,
        ):
            reached = start
            for chunk in _chunks(response):
                reached += len(chunk)
                if reached > archive.limit:
                    break
                file.write(chunk)
                bar.update(len(chunk))
    if reached > archive.limit:
        _refuse(begun, f"{archive.url} sends more than the expected {archive.limit} bytes")
    if total is not None and reached != total:
        raise requests.ConnectionError(f"the connection ended after {reached} of {total} bytes")
    tag.unlink(missing_ok=True)


def _refuse(begun: Path, reason: str) -> NoReturn:
    """Remove the received bytes and raise a DataError: this is not the file."""
    for left in (begun, begun.with_name(f"{begun.name}.tag")):
        left.unlink(missing_ok=True)
    raise DataError(f"{reason}: not the expected file. Try again later, or get the file from another source.")


def _announced(response: requests.Response, archive: Archive, start: int, begun: Path) -> int | None:
    """Return the size of the whole file in bytes as the host announces it; None if it does not.

    Raises:
        DataError: the host announces too many bytes or compressed content.
        OSError: the disk has too little free space.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        _refuse(begun, f"{archive.url} is sent compressed ({encoding!r:.40}), which was not requested")
    length = response.headers.get("Content-Length", "").strip()
    total = start + int(length) if length.isdecimal() and len(length) < 20 else None
    if total is not None and total > archive.limit:
        _refuse(begun, f"{archive.url} has {total} bytes instead of {archive.limit} bytes")
    needed = (total or archive.size or 0) - start
    if needed > shutil.disk_usage(begun.parent).free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:,.0f} MB are needed")
    return total


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the content in pieces of :data:`_CHUNK`; if the connection breaks, drop the incomplete piece.

    Raises:
        requests.ConnectionError: the connection broke or became too slow.
    """
    waiting, since, came = bytearray(), time.monotonic(), 0
    try:
        while piece := response.raw.read1(_CHUNK, decode_content=False):
            waiting += piece
            came += len(piece)
            while len(waiting) >= _CHUNK:
                yield bytes(waiting[:_CHUNK])
                del waiting[:_CHUNK]
            passed = time.monotonic() - since
            if passed > _WATCHED:
                if came < _SLOWEST * passed:
                    raise requests.ConnectionError(f"only {came} bytes arrived within {passed:.0f} seconds")
                since, came = time.monotonic(), 0
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error
    if waiting:
        yield bytes(waiting)


def _verify(archive: Archive, path: Path) -> None:
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise DataError(
            f"{path} has {size} bytes, but {archive.url} has {archive.size}: delete it and run the command again"
        )
    if archive.digest is None:
        return
    algorithm, _, expected = archive.digest.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with (
        path.open("rb") as file,
        tqdm(desc=f"checking {archive.name}", total=size, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while chunk := file.read(16 * _CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected:
        raise DataError(
            f"{path} is damaged or not the expected file: its {algorithm} is {digest.hexdigest()}, expected "
            f"{expected}. Delete it and run the command again."
        )


def extract(archive: Path, part: Part, root: Path) -> None:
    """Extract the archive's images into place; skip those that already exist with the same size.

    Raises:
        DataError: the archive is damaged or would extract to too many bytes, or the disk is full.
    """
    left = _SPARE + _TIMES * archive.stat().st_size
    try:
        for name, size, source in _members(archive):
            match = re.fullmatch(part.pattern, name)
            if match is None:
                continue
            target = root / part.target.format(**match.groupdict())
            left -= size
            if left < 0 or not target.resolve().is_relative_to(root.resolve()):
                raise DataError(
                    f"{archive} is not the expected file: {name!r:.100} has {size} bytes and would be written to "
                    f"{target}. Delete the archive and run the command again."
                )
            if target.is_file() and target.stat().st_size == size:
                continue
            with atomic_path(target, flush=False) as temporary, source() as content, temporary.open("wb") as file:
                shutil.copyfileobj(content, file)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
        # RuntimeError: encrypted, or an unknown compression
        raise DataError(f"{archive} is damaged ({error}): delete it and run the command again") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{root}: not enough space for the images of {archive} ({_free(archive)}). Free some space and run the "
                "same command again; it keeps the images that are already there."
            ) from error
        raise


def _members(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Yield name, size and an opening function for every file in a zip or tar archive."""
    description = f"extracting {archive.name}"
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            for info in progress(file.infolist(), len(file.infolist()), description, "file"):
                yield info.filename, info.file_size, partial(file.open, info)
        return
    with tarfile.open(archive) as tar:
        for member in tqdm(tar, desc=description, unit="file", disable=None):
            if member.isfile():
                yield member.name, member.size, partial(_open_member, tar, member)


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # a regular file
    return content


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, or 2 if something is unavailable or damaged."""
    arguments = arguments_of.download().parse_args(argv)
    for name in arguments.sets:
        download(SETS[name].parts, arguments.root, keep=arguments.keep)
        say_line(f"{name}: complete in {arguments.root}")
        for command in SETS[name].then:
            say_line(f"  next: {command.format(root=arguments.root)}")
    return 0
