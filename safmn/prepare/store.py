"""``safmn prepare store``: decode HR and LR images once into one file, from which training reads patches.

The build appends images to ``FILE.partial`` and records them in a journal beside it. A killed build resumes after the
last image whose pixels are intact. Only a complete store gets the name ``FILE``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np

from safmn.data.sources import (
    Pair,
    check_sizes,
    list_images,
    names_from_meta_info,
    pairs_from_folders,
    pairs_from_meta_info,
)
from safmn.data.store_format import (
    ALIGNMENT,
    REMAKE,
    DamagedStore,
    Source,
    SourceFile,
    StoredImage,
    StoreFile,
    StoreIndex,
    digest_of,
    finish_file,
    read_at,
    read_index,
    write_at,
)
from safmn.errors import EXIT_FAILED, DataError, exit_status
from safmn.imaging import decode_rgb, imresize, mod_crop
from safmn.prepare import arguments as arguments_of
from safmn.prepare.parallel import default_jobs, in_order, progress
from safmn.system.console import say_line
from safmn.system.files import flush_directory, replace
from safmn.system.locks import ProcessLock

logger = logging.getLogger(__name__)


class Decoded(NamedTuple):
    """The pixels of a pair, planar uint8 (3, H, W) and (3, h, w), and records of their files."""

    gt: np.ndarray
    lq: np.ndarray
    hr: SourceFile
    lr: SourceFile | None


def build_store(output: Path, source: Source, *, jobs: int) -> int:
    """Build the store or resume an unfinished build of the same source; return the number of decoded images.

    A store at ``output`` that is up to date is kept; an outdated one is replaced once the new one is complete.

    Raises:
        DataError: an image is missing, unreadable or does not fit its counterpart (the unfinished build is kept), or
            another process is building the same store.
    """
    pairs = find_pairs(source)
    if is_up_to_date(output, source, pairs):
        return 0
    output.parent.mkdir(parents=True, exist_ok=True)
    partial, journal = (output.with_name(f"{output.name}.{ending}") for ending in ("partial", "journal"))
    lock = ProcessLock(output.with_name(f"{output.name}.lock"))
    if not lock.take():
        raise DataError(f"{lock.owner} is building {partial}. Wait for it to end.")
    try:
        if is_up_to_date(output, source, pairs):  # another process has just built it
            return 0
        return _build(output, partial, journal, source, pairs, jobs)
    finally:
        lock.release()


def _build(output: Path, partial: Path, journal: Path, source: Source, pairs: Sequence[Pair], jobs: int) -> int:
    with _open(partial) as file, _open(journal) as notes:
        images = _intact_images(file, notes, source, pairs)
        done = len(images)
        for image in _append(file, source, pairs[done:], images[-1].end(source.scale) if images else ALIGNMENT, jobs):
            notes.write(msgspec.json.encode(image) + b"\n")
            images.append(image)
        end = images[-1].end(source.scale)
        finish_file(file, end, StoreIndex(source, images))
    replace(partial, output)
    flush_directory(output.parent)
    journal.unlink()
    return len(pairs) - done


def find_pairs(source: Source) -> list[Pair]:
    """Return the paths of the images in the order of the data set; if the store makes LR, both are the HR path.

    Raises:
        DataError: a folder or an image is missing.
    """
    if source.lr_folder is None:
        names = names_from_meta_info(source.meta_info) if source.meta_info else list_images(source.hr_folder)
        return [Pair(os.path.join(source.hr_folder, name), os.path.join(source.hr_folder, name)) for name in names]
    if source.meta_info:
        return pairs_from_meta_info(source.hr_folder, source.lr_folder, source.meta_info, source.filename_tmpl)
    return pairs_from_folders(source.hr_folder, source.lr_folder, source.filename_tmpl)


def is_up_to_date(output: Path, source: Source, pairs: Sequence[Pair]) -> bool:
    """Return whether ``output`` is a store of exactly these images in their current state."""
    if not output.exists():
        return False
    try:
        index = read_index(output)
    except DamagedStore as error:
        logger.warning("%s Making it again.", str(error).removesuffix(f" {REMAKE}"))
        return False
    wanted = [(_name(pair.gt, source.hr_folder), _lr_name(pair, source)) for pair in pairs]
    found = [(image.hr.name, image.lr.name if image.lr else None) for image in index.images]
    return index.source == source and found == wanted and index.first_change(at_most=len(wanted)) is None


def _lr_name(pair: Pair, source: Source) -> str | None:
    """Return the LQ image's name in the folder of LR images; None if the store makes them."""
    return _name(pair.lq, source.lr_folder) if source.lr_folder and pair.lq else None


def _name(path: str, folder: str) -> str:
    """Return the name of an image below its folder; with ``/`` on every system, so that stores can be moved."""
    return os.path.relpath(path, folder).replace(os.sep, "/")


def decode(pair: Pair, source: Source) -> Decoded:
    """Read a pair; if the source has no LQ image, make it with MATLAB's bicubic. GT is cropped to fit LQ.

    In a store of GT images only, the LQ image has no pixels.

    Raises:
        DataError: an image is missing or unreadable, or the sizes do not fit; the message names it.
    """
    gt, hr = _read(pair.gt, source.hr_folder)
    if source.gt_alone:
        lq, lr = gt[:0, :0], None
    elif source.lr_folder is None:
        if min(gt.shape[:2]) < source.scale:
            raise DataError(f"{pair.gt} is smaller than the scale of {source.scale}. Remove it.")
        gt, lr = mod_crop(gt, source.scale), None
        lq = imresize(gt, 1 / source.scale)
    else:
        lq, lr = _read(pair.lq, source.lr_folder)
        check_sizes(gt, lq, source.scale, pair)
        gt = gt[: lq.shape[0] * source.scale, : lq.shape[1] * source.scale]
    return Decoded(_planar(gt), _planar(lq), hr, lr)


def damaged_images(path: Path, *, jobs: int) -> list[str]:
    """Return the names of the images whose pixels in the store are damaged. Reads the whole file.

    Raises:
        DataError: the file is not a store, or its index is damaged.
    """
    store = StoreFile(path)
    with contextlib.closing(in_order(store.is_intact, range(len(store)), jobs)) as results:
        intact = [result() for result in progress(results, len(store), "verifying")]
    return [image.hr.name for image, good in zip(store.index.images, intact, strict=True) if not good]


def _append(file: BinaryIO, source: Source, pairs: Sequence[Pair], offset: int, jobs: int) -> Iterator[StoredImage]:
    """Decode in parallel and write in order; yield an image when its pixels are in the file."""
    with contextlib.closing(in_order(lambda pair: decode(pair, source), pairs, jobs)) as results:
        for result in progress(results, len(pairs), "building"):
            pixels = result()
            height, width = (side // source.scale for side in pixels.gt.shape[1:])
            image = StoredImage(offset, height, width, digest_of(pixels.gt, pixels.lq), pixels.hr, pixels.lr)
            try:
                _write(file, pixels.gt, offset)
                _write(file, pixels.lq, image.lq_offset(source.scale))
            except OSError as error:
                raise DataError(f"cannot write the store: {error.strerror}. Run the same command to resume.") from error
            yield image
            offset = image.end(source.scale)


def _open(path: Path) -> BinaryIO:
    """Open for reading and writing, keeping the content; unbuffered, so that written data survives a kill."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)  # type: ignore[return-value]


def _write(file: BinaryIO, block: np.ndarray, offset: int) -> None:
    write_at(file, offset, block.reshape(-1).data)


def _intact_images(file: BinaryIO, notes: BinaryIO, source: Source, pairs: Sequence[Pair]) -> list[StoredImage]:
    """Return the images of an unfinished build that are still valid, a prefix of ``pairs``; truncate the rest.

    Each image is checked against its source files and its pixels.
    """
    notes.seek(0)
    lines = notes.read().split(b"\n")[:-1]  # a last line without an end is incomplete
    opening = msgspec.json.encode(source)
    images = []
    if lines and lines[0] == opening:
        for line, pair in zip(lines[1:], pairs, strict=False):
            try:
                image = msgspec.json.decode(line, type=StoredImage)
            except (msgspec.DecodeError, UnicodeDecodeError):  # from a failed disk; decode again
                break
            if not _is_kept(file, image, source, pair):
                break
            images.append(image)
    notes.seek(0)
    notes.truncate()
    notes.write(b"".join(msgspec.json.encode(part) + b"\n" for part in (source, *images)))
    file.truncate(images[-1].end(source.scale) if images else 0)
    return images


def _is_kept(file: BinaryIO, image: StoredImage, source: Source, pair: Pair) -> bool:
    if image.hr.name != _name(pair.gt, source.hr_folder) or not image.hr.is_unchanged(source.hr_folder):
        return False
    if (image.lr.name if image.lr else None) != _lr_name(pair, source):
        return False
    if source.lr_folder and not (image.lr and image.lr.is_unchanged(source.lr_folder)):
        return False
    gt = read_at(file, image.offset, image.gt_bytes(source.scale))
    lq = read_at(file, image.lq_offset(source.scale), image.lq_bytes(source.scale))
    return digest_of(gt, lq) == image.digest


def _read(path: str, folder: str) -> tuple[np.ndarray, SourceFile]:
    try:
        with open(path, "rb") as file:
            state, content = os.fstat(file.fileno()), file.read()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    name = _name(path, folder)
    pixels = _eight_bits(decode_rgb(content, path, deep=True), path)
    return pixels, SourceFile(name, state.st_size, state.st_mtime_ns, digest_of(content))


def _eight_bits(image: np.ndarray, path: str) -> np.ndarray:
    """Return an image with 8 bits; a 16-bit image is converted if its values are 8-bit values times 257.

    Raises:
        DataError: the image needs more than 8 bits, which a store cannot hold.
    """
    if image.dtype == np.uint8:
        return image
    upper = (image >> 8).astype(np.uint8)
    if not np.array_equal(upper.astype(np.uint16) * 257, image):
        raise DataError(
            f"{path} has 16 bits, and a patch store holds 8: train from the folder or from an lmdb (safmn prepare "
            "lmdb), which keep them, or convert the images to 8 bits"
        )
    return upper


def _planar(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))  # (H, W, 3) -> (3, H, W)


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, 1 if ``--verify`` found damage, or 2 for a user's mistake."""
    parser = arguments_of.store()
    arguments = parser.parse_args(argv)
    jobs = default_jobs() if arguments.jobs is None else max(arguments.jobs, 1)
    if arguments.verify:
        return _verify(arguments.verify, jobs)
    if not (arguments.hr and arguments.output and bool(arguments.scale) != arguments.gt_only):
        parser.error("give --hr, -o and either --scale or --gt-only (or --verify FILE)")
    if arguments.gt_only and arguments.lr:
        parser.error("--gt-only stores no LR images; leave out --lr")
    absolute = [str(path.resolve()) if path else None for path in (arguments.hr, arguments.lr, arguments.meta_info)]
    source = Source(arguments.scale or 1, str(absolute[0]), absolute[1], arguments.filename_tmpl, absolute[2])
    decoded = build_store(arguments.output, source, jobs=jobs)
    size = arguments.output.stat().st_size / 2**30
    count = len(read_index(arguments.output).images)
    say_line(f"{arguments.output}: {count} images, {size:.2f} GiB" + ("" if decoded else " (was up to date)"))
    return 0


def _verify(path: Path, jobs: int) -> int:
    damaged = damaged_images(path, jobs=jobs)
    for name in damaged:
        say_line(f"damaged: {name}")
    say_line(f"{path}: {len(damaged)} damaged images" + (". Delete the store and make it again." if damaged else ""))
    return EXIT_FAILED if damaged else 0
