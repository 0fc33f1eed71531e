"""Training patches from photographs in Debian's and Ubuntu's packages of wallpapers, all under free licences.

``wallpaper_photos.py -o datasets/photos/more`` reads docs/photographs.tsv, which names each photograph with its
package, licence and author, downloads the packages (``--downloads`` keeps them), halves each photograph (2x2 means:
camera JPEGs hold less than their pixels), and writes its squares with most detail, losslessly. The licence that the
package states for each file (``debian/copyright``) and the file's SHA-256 are compared with the list. What is written
already is not written again.

Needs ``dpkg-deb``. 2.6 GB of downloads.
"""

from __future__ import annotations

import argparse
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
from safmn.system.console import say

LIST = Path(__file__).resolve().parents[2] / "docs" / "photographs.tsv"
ARCHIVES = {"debian": "http://deb.debian.org/debian/", "ubuntu": "http://archive.ubuntu.com/ubuntu/"}
SIDE = 384
AT_MOST = 12  # squares of a photograph
LEAST_DETAIL = 3.0  # of a square: mean magnitude of the Laplacian of grey values
LARGEST_SCALE = 0.6  # of whole photographs: larger ones are as soft as camera JPEGs are
Pieces = dict[str, np.ndarray]  # file names and images


@dataclass(frozen=True)
class Photograph:
    """A row of the list.

    Attributes:
        package: ``debian:`` or ``ubuntu:`` and the package's path in that archive.
        file: path in the package.
        sha256: of the file.
        licence: as the package states it.
        copyright: likewise.
    """

    package: str
    file: str
    sha256: str
    licence: str
    copyright: str

    def square(self, number: int) -> str:
        """File name of its ``number``-th square."""
        return f"wallpaper_{self.sha256[:12]}_{number:02}.png"

    def whole(self, side: int) -> str:
        """File name of it as a whole, its shorter side ``side`` pixels long."""
        return f"whole{side}_{self.sha256[:12]}.png"


def read_list(path: Path) -> list[Photograph]:
    """The photographs of a tab-separated list, in its order."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Photograph(**row) for row in rows]


def download(package: str, folder: Path) -> Path:
    """The package's file, downloaded to ``folder`` if it is not there.

    Raises:
        DataError: the archive does not hand it out.
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
                f"{ARCHIVES[archive]}{path}: {error}. Archives drop old versions: take another version of the package, "
                f"put it into {folder} under this one's name, and start again (--downloads {folder})."
            ) from error
        part.rename(target)
    return target


def licences(copyright_file: str) -> list[tuple[str, str]]:
    """Patterns of file names with the licence's short name, in order, from a machine-readable ``debian/copyright``.

    Patterns are separated by white space; some packages name files with spaces in them, so that whole lines count, too.
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
    """A file's name or pattern without what packages write in more than one way."""
    return name.casefold().replace(" ", "_")


def stated(known: list[tuple[str, str]], file: str) -> str:
    """Licence of a file by these patterns: the last that matches.

    Many packages name files without their folders, some with other capitals, or with spaces for underscores.
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
    """Unpack a Debian package into ``folder``; what its ``debian/copyright`` says, as :func:`licences` returns it.

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
    """Compare an unpacked photograph and the licence that its package states with the list.

    Raises:
        DataError: one of them is another.
    """
    path = folder / photograph.file
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != photograph.sha256:
        raise DataError(f"{photograph.package}: {photograph.file} is not the file that the list of photographs names.")
    if (licence := stated(known, photograph.file)) != photograph.licence:
        raise DataError(f"{photograph.package}: {photograph.file} is under {licence}, not {photograph.licence}.")


def squares(image: np.ndarray, side: int = SIDE, at_most: int = AT_MOST) -> list[np.ndarray]:
    """The squares with most detail, none overlapping, of a uint8 (H, W, 3) photograph that is halved first."""
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
    """:func:`squares` under their names, the one with most detail first."""
    return {photograph.square(number): square for number, square in enumerate(squares(image))}


def shrink_whole(sides: Sequence[int], photograph: Photograph, image: np.ndarray) -> Pieces:
    """The whole uint8 (H, W, 3) image, its shorter side as long as each of ``sides`` that shrinks it enough."""
    scales = {side: side / min(image.shape[:2]) for side in sorted(sides)}
    return {photograph.whole(side): imresize(image, scale) for side, scale in scales.items() if scale <= LARGEST_SCALE}


def write_pieces(
    photographs: list[Photograph],
    downloads: Path,
    output: Path,
    first: Callable[[Photograph], str],
    pieces: Callable[[Photograph, np.ndarray], Pieces],
) -> None:
    """Write what ``pieces`` makes of one package's photographs, those left out whose ``first`` file is there."""
    todo = [photograph for photograph in photographs if not (output / first(photograph)).exists()]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as temporary:
        known = unpack(download(todo[0].package, downloads), Path(temporary))
        for photograph in todo:
            check(photograph, Path(temporary), known)
        for photograph in todo:
            made = pieces(photograph, read_rgb(Path(temporary) / photograph.file))
            for name in reversed(made):  # the first one last: it says that all are there
                write_image(output / name, made[name])


@exit_status
def main() -> int:
    """Download, cut, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for what is cut")
    parser.add_argument("--list", type=Path, default=LIST, help="photographs; default: docs/photographs.tsv")
    parser.add_argument("--downloads", type=Path, help="folder to keep the packages in; default: none is kept")
    parser.add_argument(
        "--whole", type=int, nargs="+", metavar="SIDE", help="whole photographs with shorter sides of so many pixels"
    )
    arguments = parser.parse_args()
    if arguments.whole:
        smallest = min(arguments.whole)
        first, pieces = partial(Photograph.whole, side=smallest), partial(shrink_whole, arguments.whole)
    else:
        first, pieces = partial(Photograph.square, number=0), cut_squares
    packages = [list(group) for _, group in groupby(read_list(arguments.list), key=lambda row: row.package)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for photographs in tqdm(packages, desc="packages"):
        with tempfile.TemporaryDirectory() as temporary:
            downloads = arguments.downloads or Path(temporary)
            downloads.mkdir(parents=True, exist_ok=True)
            write_pieces(photographs, downloads, arguments.output, first, pieces)
    pattern, kind = ("whole*.png", "copies") if arguments.whole else ("wallpaper_*.png", "squares")
    written = len(list(arguments.output.glob(pattern)))
    say(f"{arguments.output}: {written} {kind} of {sum(map(len, packages))} photographs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
