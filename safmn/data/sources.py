"""Read images from folders, lmdbs and patch stores, and find the LQ image of each GT image."""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import lmdb
import numpy as np

from safmn import imaging
from safmn.data.store_format import CheckSource, StoreFile
from safmn.errors import DataError
from safmn.imaging import decode_image, decode_rgb, read_image, read_rgb
from safmn.imaging.file_names import IMAGE_SUFFIXES, template_mistake

_REMAKE_LMDB = "Copy it again, or rebuild it with safmn prepare lmdb."
_SHAPE = re.compile(r"\s+\(\s*\d+(\s*,\s*\d+){1,2}\s*\)(\s[^()]*)?$")  # with the rest of the line, e.g. a compression
_LMDB_HEADER = struct.Struct("<16x2I16xI")
_LMDB_PAGES = {2**exponent for exponent in range(8, 17)}
_LONGEST_LIST = 2**28  # largest accepted list of image names, bytes
_NAMED_AT_MOST = 3  # missing images that a message names; it gives only the number of the others


PLANES = {"grey": 1, "rgba": 4}
"""Values of ``color`` that change how files are read -> number of channels."""


def with_channels(image: np.ndarray, color: str | None) -> np.ndarray:
    """Return an image as stored, uint8 or uint16, with the channels that ``color`` asks for.

    ``grey``: one channel; colours become luma (BT.601, full range, rounded), alpha is dropped. ``rgba``: four channels;
    an image without alpha gets an opaque one.

    Args:
        image: (H, W), (H, W, 3) or (H, W, 4).
    """
    planes = image[..., None] if image.ndim == 2 else image
    white = np.iinfo(image.dtype).max
    if color == "grey" and planes.shape[2] > 1:
        luma = planes[..., :3].astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        return np.rint(luma).astype(image.dtype)[..., None]
    if color == "rgba" and planes.shape[2] < 4:
        rgb = np.repeat(planes, 3, axis=2) if planes.shape[2] == 1 else planes
        return np.concatenate((rgb, np.full_like(rgb[..., :1], white)), axis=2)
    return np.ascontiguousarray(planes)


class Pair(NamedTuple):
    """The paths or lmdb keys of a GT image and its LQ image."""

    gt: str
    lq: str


class Reader(Protocol):
    """Reads images by path or key."""

    def read(self, name: str) -> np.ndarray:
        """Return the image as RGB (H, W, 3), uint8, or uint16 if it has more bits.

        Raises:
            DataError: the image is missing or damaged; the message names it.
        """
        ...


class DiskReader:
    """Reads image files.

    Args:
        color: the ``color`` of the data set's section; see :func:`with_channels`.
    """

    def __init__(self, color: str | None = None) -> None:
        self.color = color

    def read(self, name: str) -> np.ndarray:
        """Return the image file as uint8 or uint16, RGB (H, W, 3) or with the channels of ``color``."""
        return with_channels(read_image(name), self.color) if self.color in PLANES else read_rgb(name, deep=True)


class LmdbReader:
    """Reads encoded images from an lmdb in BasicSR's format: a folder with ``data.mdb`` and ``meta_info.txt``.

    The lmdb is opened at the first read. Several threads may read from it, also after a fork: it is opened read-only
    and without locks, so processes share no state. The reader can be pickled.

    Raises:
        DataError: the folder or one of the two files is missing (raised here) or damaged (raised when it is read).
    """

    def __init__(self, folder: str | Path, color: str | None = None) -> None:
        self.folder, self.color = str(folder), color
        for file in ("data.mdb", "meta_info.txt"):
            if not os.path.isfile(os.path.join(self.folder, file)):
                raise DataError(
                    f"{self.folder} is not an lmdb of images: {file} is missing. Make one with safmn prepare lmdb."
                )
        self._environment: Any = None

    def keys(self) -> list[str]:
        """Return the keys that ``meta_info.txt`` lists, in its order."""
        return [os.path.splitext(name)[0] for name in _names_in(os.path.join(self.folder, "meta_info.txt"))]

    def read(self, name: str) -> np.ndarray:
        """Return the image of a key as uint8 or uint16 RGB (H, W, 3)."""
        try:
            if self._environment is None:
                self._environment = _open(os.path.realpath(self.folder))
            with self._environment.begin(write=False, buffers=False) as transaction:
                content = transaction.get(name.encode())
        except lmdb.Error as error:
            raise DataError(f"{self.folder} cannot be read as an lmdb ({error}). {_REMAKE_LMDB}") from error
        if content is None:
            raise DataError(
                f"{self.folder} has no image {name!r}, but its meta_info.txt lists it. Rebuild it with safmn prepare "
                "lmdb."
            )
        name = f"{self.folder}:{name}"
        if self.color in PLANES:
            return with_channels(decode_image(content, name), self.color)
        return decode_rgb(content, name, deep=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None}


class StoreReader:
    """Reads the GT images of a patch store by name.

    Args:
        path: a file made with ``safmn prepare store --gt-only``.
        check_source: see :meth:`StoreFile.check_sources`.
        set_name: name of the data set, for messages.

    Raises:
        DataError: the store is missing, damaged or out of date, or holds pairs (their GT images may be cropped).
    """

    def __init__(self, path: str | Path, check_source: CheckSource, set_name: str) -> None:
        self.store = StoreFile(path)
        if not self.store.index.source.gt_alone:
            raise DataError(
                f"the patch store {path} holds pairs of images; make a store of GT images only with: safmn prepare "
                f"store --gt-only --hr DIR -o FILE"
            )
        self.store.check_sources(check_source, set_name)
        self.names = [image.hr.name for image in self.store.index.images]  # may repeat names
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def read(self, name: str) -> np.ndarray:
        """Return the image as uint8 RGB (H, W, 3), a view of the mapped file: only the used pixels are loaded."""
        return self.store.gt(self._numbers[name]).transpose(1, 2, 0)


_environments: WeakValueDictionary[str, Any] = WeakValueDictionary()
_opening = threading.Lock()


def _open(folder: str) -> Any:
    """Return the lmdb environment of a folder; all readers share it because lmdb allows only one per process."""
    with _opening:
        environment = _environments.get(folder)
        if environment is None:
            _check_header(folder)
            environment = lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False)
            try:
                check_whole(folder, environment)
            except DataError:
                environment.close()  # else another thread cannot open it, and says so instead
                raise
            _environments[folder] = environment
        return environment


def _check_header(folder: str) -> None:
    """Refuse an lmdb whose header has an impossible page size, because the library divides by it.

    The layout is that of MDB_meta in lmdb's mdb.c, after the 16 bytes of the page header.

    Raises:
        DataError: the header is wrong; the message names the file.
    """
    with open(os.path.join(folder, "data.mdb"), "rb") as file:
        header = file.read(_LMDB_HEADER.size)
    if len(header) == _LMDB_HEADER.size:
        magic, version, page = _LMDB_HEADER.unpack(header)
        if (magic, version) == (0xBEEFC0DE, 1) and page in _LMDB_PAGES:
            return
    raise DataError(f"{folder}/data.mdb is damaged or not an lmdb. {_REMAKE_LMDB}")


def check_whole(folder: str, environment: Any) -> None:
    """Refuse a truncated lmdb, because reading beyond the end of the mapped file would kill the process.

    Raises:
        DataError: the file is too short; the message names it.
    """
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = os.path.getsize(os.path.join(folder, "data.mdb"))
    if size < needed:
        raise DataError(f"{folder}/data.mdb ends too early ({size} of {needed} bytes). {_REMAKE_LMDB}")


def list_images(folder: str | Path) -> list[str]:
    """Return the names of the image files directly in a folder, sorted by name without ending.

    An lmdb sorts its keys the same way, so index i is the same image in a folder and in an lmdb.

    Raises:
        DataError: the folder does not exist or has no images.
    """
    return sorted((path.name for path in imaging.list_images(folder)), key=os.path.splitext)


def pairs_from_folders(gt_folder: str, lq_folder: str, template: str = "{}") -> list[Pair]:
    """Pair the images of two folders: the LQ image of ``NAME.png`` is ``template.format("NAME")`` with any ending.

    Raises:
        DataError: a folder is missing or empty, or images have no counterpart; the message names them.
    """
    gt_names, lq_names = list_images(gt_folder), list_images(lq_folder)
    pairs = _pair(gt_names, lq_names, gt_folder, lq_folder, template)
    extra = sorted(set(lq_names) - {os.path.basename(pair.lq) for pair in pairs})
    if extra:
        raise DataError(
            f"{lq_folder} has {len(lq_names)} images and {gt_folder} has {len(gt_names)}; without a GT image: "
            f"{_enumerate(extra)}. Remove them, or list the wanted images in a meta_info_file."
        )
    return pairs


def pairs_from_meta_info(gt_folder: str, lq_folder: str, meta_info: str, template: str = "{}") -> list[Pair]:
    """Pair the images that a meta-info file lists, in its order (lines such as ``0001_s001.png (480,480,3)``).

    Raises:
        DataError: the file, a folder or an image is missing; the message names it.
    """
    names = names_from_meta_info(meta_info)
    missing = [name for name in names if not os.path.isfile(os.path.join(gt_folder, name))]
    if missing:
        raise DataError(f"{len(missing)} images that {meta_info} lists are not in {gt_folder}: {_enumerate(missing)}")
    if not os.path.isdir(lq_folder):
        raise DataError(f"{lq_folder}: there is no such folder")
    return _pair(names, _flat(lq_folder), gt_folder, lq_folder, template)


def pairs_from_lmdb(gt: LmdbReader, lq: LmdbReader, template: str = "{}") -> list[Pair]:
    """Pair two lmdbs by key, sorted by key: the LQ key is the same, or ``template.format(key)``.

    Raises:
        DataError: the keys do not match; the message names them.
    """
    _check_template(template)
    gt_keys, lq_keys = sorted(gt.keys()), set(lq.keys())
    rule = "{}" if lq_keys == set(gt_keys) else template
    pairs = [Pair(key, rule.format(key)) for key in gt_keys]
    missing = [pair.lq for pair in pairs if pair.lq not in lq_keys]
    extra = sorted(lq_keys - {pair.lq for pair in pairs})
    if missing:
        raise DataError(f"{lq.folder} lacks {len(missing)} of the images of {gt.folder}: {_enumerate(missing)}")
    if extra:
        raise DataError(f"{lq.folder} has {len(extra)} images without a GT image in {gt.folder}: {_enumerate(extra)}")
    return pairs


def names_from_meta_info(path: str | Path) -> list[str]:
    """Return the image names that a meta-info file lists, in its order.

    A backslash separates folders, as in lists that were made on Windows.

    Raises:
        DataError: the file does not exist, is not UTF-8 text, or is empty; a name leads out of the image folder.
    """
    if not os.path.isfile(path):
        raise DataError(f"no such meta_info_file: {path}")
    names = [name.replace("\\", "/") for name in _names_in(path)]
    if not names:
        raise DataError(f"the meta_info_file {path} lists no images")
    for name in names:
        # not isabs: since Python 3.13 a name that begins with a separator is not absolute on Windows
        if name.startswith("/") or os.path.splitdrive(name)[0] or ".." in name.split("/"):
            raise DataError(
                f"the meta_info_file {path} lists {name!r:.100}: names must be below the folder of the images"
            )
    return names


def check_sizes(gt: np.ndarray, lq: np.ndarray, scale: int, pair: Pair, *, training: bool = True) -> None:
    """Refuse a pair whose sizes do not fit the scale, because the content of such images is often shifted, too.

    A GT image may be up to ``scale`` - 1 pixels larger than ``scale`` times its LQ image: the LQ image was made from
    the GT image cropped to a multiple of the scale. In testing, it may also be cropped to a multiple of 12, because
    benchmarks use the same HR images for all scales.

    Raises:
        DataError: the sizes do not fit; the message names both images and their sizes.
    """
    sides = list(zip(gt.shape[:2], lq.shape[:2], strict=True))
    fits = all(0 <= gt_side - scale * lq_side < scale for gt_side, lq_side in sides)
    shared = not training and all(gt_side - gt_side % 12 == scale * lq_side for gt_side, lq_side in sides)
    if not (fits or shared):
        raise DataError(
            f"GT and LQ do not fit at scale {scale}: {pair.gt} is {gt.shape[1]}x{gt.shape[0]}, {pair.lq} is "
            f"{lq.shape[1]}x{lq.shape[0]}. Check scale, dataroot_lq and filename_tmpl."
        )


def check_alpha(gt: np.ndarray, lq: np.ndarray, pair: Pair) -> None:
    """Refuse an LQ image that is opaque although its GT image is not: it was made without the alpha channel.

    Args:
        gt, lq: (H, W, 4), uint8 or uint16, as :func:`with_channels` returns them.

    Raises:
        DataError: see above; the message names both images.
    """
    alpha, white = gt[..., 3], np.iinfo(gt.dtype).max
    see_through = alpha.min() < white // 2 or alpha.mean() < white * 254 / 255  # more than rounding hides
    if see_through and lq[..., 3].min() == np.iinfo(lq.dtype).max:
        raise DataError(
            f"{pair.gt} is partly transparent, but {pair.lq} is opaque: it was made without the alpha channel. Make "
            "the LQ images again (safmn prepare lr keeps alpha), or use color: rgb."
        )


def _pair(
    gt_names: Sequence[str], lq_names: Sequence[str], gt_folder: str, lq_folder: str, template: str
) -> list[Pair]:
    _check_template(template)
    present, by_stem = set(lq_names), {os.path.splitext(name)[0]: name for name in reversed(lq_names)}
    pairs, missing, taken = [], [], dict[str, str]()
    for gt_name in gt_names:
        folder, base = os.path.split(gt_name)
        stem, ending = os.path.splitext(base)
        wanted = template.format(stem)
        lq_name = wanted + ending if wanted + ending in present else by_stem.get(wanted)
        for other in (ending, *IMAGE_SUFFIXES) if folder else ():  # the LQ folder may have the same subfolders
            if os.path.isfile(os.path.join(lq_folder, folder, wanted + other)):
                lq_name = os.path.join(folder, wanted + other)
                break
        if lq_name is None:
            missing.append(wanted + ending)
            continue
        if taken.setdefault(lq_name, gt_name) != gt_name:
            raise DataError(
                f"{lq_folder}/{lq_name} would be the LQ image of two GT images in {gt_folder}, {taken[lq_name]} and "
                f"{gt_name}: rename or remove one of them"
            )
        pairs.append(Pair(os.path.join(gt_folder, gt_name), os.path.join(lq_folder, lq_name)))
    if missing:
        raise DataError(
            f"{lq_folder} lacks the LQ images of {len(missing)} of the {len(gt_names)} GT images in {gt_folder}: "
            f"{_enumerate(missing)}. Check dataroot_lq and filename_tmpl ({template!r})."
        )
    return pairs


def _flat(folder: str) -> list[str]:
    """Return the images directly in a folder; there may be none, because listed images may be in subfolders."""
    try:
        return list_images(folder)
    except DataError:
        return []


def _check_template(template: str) -> None:
    mistake = template_mistake(template)
    if mistake:
        raise DataError(f"filename_tmpl: {mistake}")


def _names_in(path: str | Path) -> list[str]:
    """Return the image names in the lines of a meta-info file."""
    size = os.path.getsize(path)
    if size > _LONGEST_LIST:
        raise DataError(f"{path} has {size / 1e6:,.0f} MB, so it is not a list of images")
    try:
        with open(path, encoding="utf-8-sig") as lines:
            return [_meta_name(line) for line in lines if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8, or make it again") from error


def _meta_name(line: str) -> str:
    """Return the image name of a line: ``"a (1).png (480,480,3) 1"`` -> ``"a (1).png"``."""
    return _SHAPE.sub("", line.strip())


def _enumerate(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
