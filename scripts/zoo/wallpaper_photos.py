"""Make training patches from photographs with free licences in the wallpaper packages of Debian and Ubuntu.

``wallpaper_photos.py -o datasets/photos/more`` reads docs/photographs.tsv, which lists each photograph with package,
licence and author. It downloads the packages (``--downloads`` keeps them), 2.6 GB in total. It halves each photograph
with 2x2 means, since camera JPEGs have less detail than pixels, and writes the squares with most detail, losslessly.
Existing squares are not written again. ``--long-side 2040`` keeps the photographs whole
instead, in three sizes.

The licence that the package states for each file (``debian/copyright``) and the file's SHA-256 must match the list.
The script needs ``dpkg-deb``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fnmatch
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.errors import DataError, exit_status
from safmn.imaging import imresize, read_rgb, write_image
from safmn.prepare.parallel import default_jobs, in_order
from safmn.system.console import say

LIST = Path(__file__).resolve().parents[2] / "docs" / "photographs.tsv"
ARCHIVES = {"debian": "http://deb.debian.org/debian/", "ubuntu": "http://archive.ubuntu.com/ubuntu/"}
SIDE = 384
AT_MOST = 12  # squares per photograph
LEAST_DETAIL = 3.0  # for a square: mean magnitude of the Laplacian of the grey values
LARGEST_SCALE = 0.6  # for whole photographs: at larger scales they are as blurred as camera JPEGs
Pieces = dict[str, np.ndarray]  # images by file name


@dataclass(frozen=True)
class Photograph:
    """A row of the list.

    Attributes:
        package: ``debian:`` or ``ubuntu:`` and the package's path in that archive.
        file: path in the package.
        sha256: checksum of the file.
        licence: licence that the package states.
        copyright: copyright that the package states.
    """

    package: str
    file: str
    sha256: str
    licence: str
    copyright: str

    def square(self, number: int) -> str:
        """Return the file name of a square; numbers begin at 0."""
        return f"wallpaper_{self.sha256[:12]}_{number:02}.png"

    def whole(self, side: int) -> str:
        """Return the file name of the whole photograph with a shorter side of ``side`` pixels."""
        return f"whole{side}_{self.sha256[:12]}.png"

    def copy(self, size: float) -> str:
        """Return the file name of the whole photograph at ``size`` times its largest size."""
        return f"photo_{self.sha256[:12]}_{round(100 * size):03}.png"


def read_list(path: Path) -> list[Photograph]:
    """Return the photographs of a tab-separated list, in its order."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Photograph(**row) for row in rows]


def download(package: str, folder: Path) -> Path:
    """Download a package to ``folder``, unless it exists there, and return the file.

    Raises:
        DataError: it cannot be downloaded.
    """
    archive, _, path = package.partition(":")
    target = folder / Path(path).name
    if not target.exists():
        part = target.with_suffix(".part")
        try:
            with urllib.request.urlopen(ARCHIVES[archive] + path, timeout=60) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except OSError as error:
            raise DataError(
                f"{ARCHIVES[archive]}{path}: {error}. Archives delete old versions: get another version of the "
                f"package, put it into {folder} under the name of this one, and start again (--downloads {folder})."
            ) from error
        part.rename(target)
    return target


def licences(copyright_file: str) -> list[tuple[str, str]]:
    """Return patterns of file names with the licence's short name, in order, from a ``debian/copyright`` file.

    White space separates patterns. Some packages have file names with spaces, so whole lines are patterns, too.
    """
    known = []
    for stanza in re.split(r"\n\s*\n", copyright_file):
        fields = dict(re.findall(r"^(Files|License):((?:.*\n?)(?:[ \t].*\n?)*)", stanza, re.MULTILINE))
        if len(fields) == 2:
            licence = fields["License"].strip().partition("\n")[0].strip()
            files = fields["Files"]
            known += [
                (pattern, licence) for pattern in dict.fromkeys([*files.split(), *map(str.strip, files.splitlines())])
            ]
    return known


def plain(name: str) -> str:
    """Return a file's name or pattern in lower case with underscores for spaces, since packages vary in both."""
    return name.casefold().replace(" ", "_")


def stated(known: list[tuple[str, str]], file: str) -> str:
    """Return the licence of a file: that of the last pattern that matches, or "none".

    Patterns often lack the folders of the files. Some differ in capitals, or have spaces for underscores.
    """
    found, file = "none", plain(file)
    for pattern, licence in known:
        wanted = plain(pattern)
        name = Path(wanted).name
        named = name != "*" and not wanted.startswith("debian/") and fnmatch.fnmatchcase(Path(file).name, name)
        if named or fnmatch.fnmatchcase(file, wanted) or fnmatch.fnmatchcase(file, f"*/{wanted}"):
            found = licence
    return found


def unpack(archive: Path, folder: Path) -> list[tuple[str, str]]:
    """Unpack a Debian package into ``folder``, and return its :func:`licences`.

    Raises:
        DataError: the package is damaged, or there is no ``dpkg-deb``.
    """
    try:
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        raise DataError(
            f"{archive} cannot be unpacked with dpkg-deb (Debian's package dpkg): {error}. "
            f"{said.decode(errors='replace').strip()}"
        ) from error
    [copyright_file] = folder.glob("usr/share/doc/*/copyright")
    return licences(copyright_file.read_text(encoding="utf-8", errors="replace"))


def check(photograph: Photograph, folder: Path, known: list[tuple[str, str]]) -> None:
    """Check that an unpacked photograph and the licence that its package states match the list.

    Raises:
        DataError: one of them differs.
    """
    path = folder / photograph.file
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != photograph.sha256:
        raise DataError(f"{photograph.package}: {photograph.file} differs from the file in the list of photographs.")
    if (licence := stated(known, photograph.file)) != photograph.licence:
        raise DataError(f"{photograph.package}: {photograph.file} is under {licence}, not {photograph.licence}.")


def squares(image: np.ndarray, side: int = SIDE, at_most: int = AT_MOST) -> list[np.ndarray]:
    """Halve a uint8 (H, W, 3) photograph, and return its squares with most detail, which do not overlap."""
    height, width = (side // 2 for side in image.shape[:2])
    half = cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    detail = np.abs(cv2.Laplacian(cv2.cvtColor(half, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    found = []
    for row in range(rows):
        for column in range(columns):
            place = np.s_[top + row * side :, left + column * side :]
            found.append((float(detail[place][:side, :side].mean()), half[place][:side, :side]))
    found.sort(key=lambda pair: -pair[0])
    return [square for value, square in found[:at_most] if value >= LEAST_DETAIL]


def cut_squares(photograph: Photograph, image: np.ndarray) -> Pieces:
    """Return the :func:`squares` of a photograph by file name, those with most detail first."""
    return {photograph.square(number): square for number, square in enumerate(squares(image))}


def shrink_whole(sides: Sequence[int], photograph: Photograph, image: np.ndarray) -> Pieces:
    """Return copies of a uint8 (H, W, 3) image with a shorter side of each of ``sides`` that shrinks it enough."""
    scales = {side: side / min(image.shape[:2]) for side in sorted(sides)}
    return {photograph.whole(side): imresize(image, scale) for side, scale in scales.items() if scale <= LARGEST_SCALE}


def whole_copies(long_side: int, sizes: Sequence[float], photograph: Photograph, image: np.ndarray) -> Pieces:
    """Return copies of a uint8 (H, W, 3) image at ``sizes`` times its largest size.

    At its largest size, the longer side is at most ``long_side`` pixels, and the scale at most :data:`LARGEST_SCALE`.
    """
    largest = imresize(image, min(long_side / max(image.shape[:2]), LARGEST_SCALE))
    return {photograph.copy(size): largest if size == 1 else imresize(largest, size) for size in sizes}


def write_pieces(
    photographs: list[Photograph],
    downloads: Path,
    output: Path,
    first: Callable[[Photograph], str],
    pieces: Callable[[Photograph, np.ndarray], Pieces],
) -> None:
    """Write the pieces of one package's photographs, except of those that are already complete.

    Args:
        photographs: all of the same package.
        downloads: folder for the package.
        output: folder for the pieces.
        first: returns the name of a photograph's first piece, which is written last and so marks it as complete.
        pieces: returns the pieces of a photograph, given the photograph and its pixels.
    """
    todo = [photograph for photograph in photographs if not (output / first(photograph)).exists()]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as temporary:
        known = unpack(download(todo[0].package, downloads), Path(temporary))
        for photograph in todo:
            check(photograph, Path(temporary), known)

        def write(photograph: Photograph) -> None:
            made = pieces(photograph, read_rgb(Path(temporary) / photograph.file))
            for name in reversed(made):  # the first one last, because its existence means that all are complete
                write_image(output / name, made[name])

        with contextlib.closing(in_order(write, todo, default_jobs())) as results:
            for result in results:
                result()


@exit_status
def main() -> int:
    """Download the packages and write the pieces; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the squares")
    parser.add_argument("--list", type=Path, default=LIST, help="list of photographs; default: docs/photographs.tsv")
    parser.add_argument(
        "--leave-out", type=Path, nargs="+", default=[], metavar="LIST", help="lists of photographs that are not used"
    )
    parser.add_argument("--downloads", type=Path, help="folder to keep the packages in; default: none is kept")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--whole", type=int, nargs="+", metavar="SIDE", help="write whole photographs with these shorter sides instead"
    )
    kind.add_argument(
        "--long-side",
        type=int,
        metavar="SIDE",
        help="write whole photographs instead, with a longer side of at most SIDE pixels, at each of the --sizes",
    )
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1.0, 0.7, 0.5], help="of a whole photograph; default: 1 0.7 0.5"
    )
    arguments = parser.parse_args()
    if arguments.long_side:
        first = partial(Photograph.copy, size=arguments.sizes[0])
        pieces = partial(whole_copies, arguments.long_side, arguments.sizes)
        pattern, noun = "photo_*.png", "copies"
    elif arguments.whole:
        smallest = min(arguments.whole)
        first, pieces = partial(Photograph.whole, side=smallest), partial(shrink_whole, arguments.whole)
        pattern, noun = "whole*.png", "copies"
    else:
        first, pieces = partial(Photograph.square, number=0), cut_squares
        pattern, noun = "wallpaper_*.png", "squares"
    left_out = {row.sha256 for path in arguments.leave_out for row in read_list(path)}
    used = [row for row in read_list(arguments.list) if row.sha256 not in left_out]
    packages = [list(group) for _, group in groupby(used, key=lambda row: row.package)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for photographs in tqdm(packages, desc="packages"):
        with tempfile.TemporaryDirectory() as temporary:
            downloads = arguments.downloads or Path(temporary)
            downloads.mkdir(parents=True, exist_ok=True)
            write_pieces(photographs, downloads, arguments.output, first, pieces)
    written = len(list(arguments.output.glob(pattern)))
    say(f"{arguments.output}: {written} {noun} of {sum(map(len, packages))} photographs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
