"""``safmn prepare lmdb``: put the images of a folder into one lmdb database in BasicSR's format.

``NAME.lmdb/data.mdb`` maps keys (image names without suffix) to PNG files. ``NAME.lmdb/meta_info.txt`` has a line
``key.png (height,width,channels) compression`` for each. The build runs under the name ``NAME.lmdb.partial``, and a
stopped build resumes from the last commit. Only a complete database gets its final name.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import lmdb
import numpy as np

from safmn.data.sources import check_whole
from safmn.errors import DataError, exit_status
from safmn.imaging import encode_png, image_size
from safmn.prepare import arguments as arguments_of
from safmn.prepare.outputs import inputs, named, read_colours
from safmn.prepare.parallel import default_jobs, in_order, progress
from safmn.system.console import say_line
from safmn.system.files import flush_directory, replace, write_atomically
from safmn.system.locks import ProcessLock

logger = logging.getLogger(__name__)

_META = "meta_info.txt"
_COMPARED = 8  # compare at least this many of the existing images
_COMMIT_EVERY = 200  # images
_CHANNELS_OF_COLOUR_TYPE = {0: 1, 2: 3, 6: 4}  # PNG's colour types


def make_lmdb(folder: Path, output: Path, *, drop: str = "", compression: int = 1, jobs: int | None = None) -> int:
    """Build ``output`` from the images of ``folder``; return the number of encoded images (0: it was up to date).

    Args:
        folder: the folder of images.
        output: the lmdb folder; its name ends in ``.lmdb``.
        drop: an ending to remove from the keys: with ``"x4"``, ``0001x4.png`` gets the key ``0001`` of its HR image.
        compression: PNG compression level, 0..9; low levels are fast to write.
        jobs: images encoded at a time; None uses all cores.

    Raises:
        DataError: the folder or images are missing; an image is unreadable (images encoded so far are kept); ``output``
            does not end in ``.lmdb`` or contains other images (names, ages and some images are compared); or another
            process is building it.
    """
    if output.suffix != ".lmdb":
        raise DataError(f"{output}: the name of an lmdb folder must end in .lmdb (BasicSR's rule)")
    paths: dict[str, Path] = {}
    for path in inputs(folder):
        key = path.stem.removesuffix(drop)
        if not key:
            raise DataError(f"{path} has an empty key without {drop!r} (--drop): rename it")
        first = paths.setdefault(key, path)
        if first != path:
            raise DataError(f"{first} and {path} have the same key without {drop!r} (--drop): rename one of them")
    try:
        return _make(paths, output, compression, jobs or default_jobs())
    except lmdb.Error as error:
        raise DataError(f"{output} cannot be read or written as an lmdb: {error}") from error


def _make(paths: dict[str, Path], output: Path, compression: int, jobs: int) -> int:
    if output.exists():
        _check_up_to_date(output, paths)
        return 0
    building = output.with_name(f"{output.name}.partial")
    lock = ProcessLock(output.with_name(f"{output.name}.lock"))
    if not lock.take():
        raise DataError(f"{lock.owner} is writing {building}: wait for it to end")
    try:
        if output.exists():  # another process has just built it
            _check_up_to_date(output, paths)
            return 0
        building.mkdir(exist_ok=True)
        return _build(paths, building, output, compression, jobs)
    finally:
        lock.release()


def _build(paths: dict[str, Path], building: Path, output: Path, compression: int, jobs: int) -> int:
    size = sum(2 * 3 * height * width for height, width in map(image_size, paths.values()))
    with lmdb.open(str(building), map_size=size + 2**28) as base:
        try:
            check_whole(str(building), base)
        except DataError as error:
            raise DataError(f"{building} is damaged: use --restart to delete it and start again ({error})") from error
        made = _fill(base, paths, building / "data.mdb", compression, jobs, str(output))
        with base.begin() as transaction:
            shapes = {key: _shape(transaction.get(key.encode(), b"")) for key in sorted(paths)}
    lines = [f"{key}.png {shape} {compression}\n" for key, shape in shapes.items()]
    write_atomically(building / _META, "".join(lines))
    replace(building, output)
    flush_directory(output.parent)
    return made


def _fill(
    base: lmdb.Environment, paths: dict[str, Path], file: Path, compression: int, jobs: int, description: str
) -> int:
    """Add the images that are missing from the database or newer than it, and delete those not wanted."""
    changed = file.stat().st_mtime
    with base.begin(write=True) as transaction:
        present = {bytes(key).decode() for key in transaction.cursor().iternext(keys=True, values=False)}
        for key in present - set(paths):
            transaction.delete(key.encode())
        if other := _another_image(transaction, paths, sorted(present & set(paths))):
            logger.warning("%s: the unfinished build has another image than %s: starting again", description, other)
            transaction.drop(base.open_db(txn=transaction), delete=False)
            present = set()
    missing = [key for key in sorted(paths) if key not in present or paths[key].stat().st_mtime > changed]
    encode = partial(_encode, paths=paths, compression=compression)
    with contextlib.closing(in_order(encode, missing, jobs)) as results:
        batch: list[tuple[bytes, bytes]] = []
        try:
            for result in progress(results, len(missing), description):
                batch.append(result())
                if len(batch) == _COMMIT_EVERY:
                    _commit(base, batch)
        finally:  # also keeps what was encoded before an interruption
            _commit(base, batch)
    return len(missing)


def _another_image(transaction: lmdb.Transaction, paths: dict[str, Path], keys: list[str]) -> Path | None:
    """Compare a sample of the images with the database; return the first image that differs, or None."""
    for key in keys[:: max(1, len(keys) // _COMPARED)]:
        held = cv2.imdecode(np.frombuffer(transaction.get(key.encode(), b"\0"), np.uint8), cv2.IMREAD_UNCHANGED)
        image = read_colours(paths[key])
        image = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]  # OpenCV decodes to BGR(A)
        if held is None or not np.array_equal(held, image):
            return paths[key]
    return None


def _encode(key: str, *, paths: dict[str, Path], compression: int) -> tuple[bytes, bytes]:
    return key.encode(), encode_png(read_colours(paths[key]), compression=compression)


def _commit(base: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    with base.begin(write=True) as transaction:
        for key, value in batch:
            transaction.put(key, value)
    batch.clear()


def _shape(png: bytes) -> str:
    """Return ``"(height,width,channels)"`` from the header of one of our PNG files."""
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    return f"({height},{width},{_CHANNELS_OF_COLOUR_TYPE[png[25]]})"


def _check_up_to_date(output: Path, paths: dict[str, Path]) -> None:
    try:
        lines = (output / _META).read_text(encoding="utf-8").split("\n")[:-1]
        changed = (output / "data.mdb").stat().st_mtime
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{output} exists but is not a complete lmdb of images ({error}). Remove it.") from error
    keys = [line.rsplit(" ", 2)[0].removesuffix(".png") for line in lines]
    if keys != sorted(paths):
        raise DataError(f"{output} exists and contains other images. Remove it, or choose another name.")
    newer = [path for path in paths.values() if path.stat().st_mtime > changed]
    if newer:
        raise DataError(
            f"{output} is older than {newer[0]} and {len(newer) - 1} more images. Remove it and make it again."
        )
    with lmdb.open(str(output), readonly=True, lock=False) as base, base.begin() as transaction:
        check_whole(str(output), base)
        other = _another_image(transaction, paths, keys)
    if other:
        raise DataError(f"{output} exists and has another image than {other}. Remove it, or choose another name.")


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, or 2 for a user's mistake or an unreadable image."""
    arguments = arguments_of.lmdb().parse_args(argv)
    folder = named(arguments.folder)
    output = arguments.output or folder.with_name(f"{folder.name}.lmdb")
    if arguments.restart:
        shutil.rmtree(output.with_name(f"{output.name}.partial"), ignore_errors=True)
    made = make_lmdb(folder, output, drop=arguments.drop, compression=arguments.compression, jobs=arguments.jobs)
    say_line(f"{output}: {f'{made} images encoded' if made else 'was up to date'}")
    return 0
