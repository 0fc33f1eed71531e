"""Training patches from the photographs in Debian's package ``lomiri-wallpapers``, all under Creative Commons licences.

``scripts/debian_photos.py -o datasets/photos/train`` downloads the package (27 MB, with ``apt-get``; Debian or a
derivative), halves each photograph (2x2 means: camera JPEGs hold less than their pixels), and writes the squares of
512x512 with most detail, losslessly. Prints what was taken, with the licence that the package states for it.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also without the package installed

from safmn.console import say
from safmn.errors import DataError, exit_status
from safmn.imaging import read_rgb, write_image

PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
LICENCES = ("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-SA-3.0")
# The others are drawings, gradients or blurred throughout.
PHOTOGRAPHS = ("Dragonfly", "Picture_0B", "Picture_1A", "Wine", "aitzgorri", "friends", "greentock", "life")
PHOTOGRAPHS += ("picosdeeuropa", "seeding", "Kleiber", "sunset")
SIDE = 512
AT_MOST = 5  # squares of a photograph
LEAST_DETAIL = 3.0  # of a square: mean magnitude of the Laplacian of grey values


def unpack(package: str, folder: Path) -> Path:
    """The unpacked Debian package.

    Raises:
        DataError: it cannot be downloaded or unpacked.
    """
    try:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
        [archive] = folder.glob(f"{package}_*.deb")
        (folder / package).mkdir()
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / package)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        raise DataError(f"Debian's package {package}: {error}. {said.decode(errors='replace').strip()}") from error
    return folder / package


def licences(copyright_file: str) -> list[tuple[str, str]]:
    """Patterns of file names with their licence, from a machine-readable ``debian/copyright``."""
    stanzas = re.findall(r"^Files: (\S+)\n(?:.*\n)*?License: (\S+)", copyright_file, re.MULTILINE)
    return [(Path(pattern).name, licence) for pattern, licence in stanzas]


def photographs(root: Path) -> Iterator[tuple[Path, str]]:
    """The photographs of an unpacked package, with their licences."""
    [copyright_file] = root.glob("usr/share/doc/*/copyright")
    known = licences(copyright_file.read_text(encoding="utf-8"))
    for path in sorted(root.glob("usr/share/backgrounds/*.jpg")):
        licence = next((licence for pattern, licence in known if fnmatch.fnmatch(path.name, pattern)), "unknown")
        if path.name.startswith(PHOTOGRAPHS) and not path.is_symlink() and licence in LICENCES:
            yield path, licence


def squares(image: np.ndarray) -> list[np.ndarray]:
    """The squares with most detail, none overlapping, of uint8 (H, W, 3) that has been halved."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    detail = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    rows, columns = image.shape[0] // SIDE, image.shape[1] // SIDE
    top, left = (image.shape[0] - rows * SIDE) // 2, (image.shape[1] - columns * SIDE) // 2
    found = []
    for row in range(rows):
        for column in range(columns):
            y, x = top + row * SIDE, left + column * SIDE
            found.append((float(detail[y : y + SIDE, x : x + SIDE].mean()), image[y : y + SIDE, x : x + SIDE]))
    found.sort(key=lambda pair: -pair[0])
    return [square for value, square in found[:AT_MOST] if value >= LEAST_DETAIL]


@exit_status
def main() -> int:
    """Download, cut, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the patches")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for package in PACKAGES:
            for path, licence in photographs(unpack(package, Path(temporary))):
                image = read_rgb(path)
                height, width = (side // 2 * 2 for side in image.shape[:2])
                half = cv2.resize(image[:height, :width], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
                cut = squares(half)
                for number, square in enumerate(cut):
                    write_image(output / f"debian_{path.stem}_{number}.png", square)
                say(f"{path.stem}: {len(cut)} of {half.shape[1]}x{half.shape[0]}, {licence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
