"""Make training patches from the photographs in Debian's ``lomiri-wallpapers``, which have Creative Commons licences.

``scripts/zoo/debian_photos.py -o datasets/photos/train`` downloads the packages (27 MB, with ``apt-get``, on Debian or
a derivative). It halves each photograph with 2x2 means, since camera JPEGs have less detail than pixels, and writes the
512x512 squares with most detail, losslessly. It prints the photographs with the licences that the packages state.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from wallpaper_photos import squares, stated, unpack

from safmn.errors import DataError, exit_status
from safmn.imaging import read_rgb, write_image
from safmn.system.console import say

PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
LICENCES = ("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-SA-3.0")
# The other images are drawings, gradients, or entirely blurred.
PHOTOGRAPHS = ("Dragonfly", "Picture_0B", "Picture_1A", "Wine", "aitzgorri", "friends", "greentock", "life")
PHOTOGRAPHS += ("picosdeeuropa", "seeding", "Kleiber", "sunset")
SIDE = 512
AT_MOST = 5  # squares per photograph


def fetch(package: str, folder: Path) -> Path:
    """Download a Debian package to ``folder`` and return the file.

    Raises:
        DataError: it cannot be downloaded.
    """
    try:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        raise DataError(f"Debian's package {package}: {error}. {said.decode(errors='replace').strip()}") from error
    [archive] = folder.glob(f"{package}_*.deb")
    return archive


def photographs(package: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Download a package to ``folder``, and yield its photographs with their licences."""
    root = folder / package
    known = unpack(fetch(package, folder), root)
    for path in sorted(root.glob("usr/share/backgrounds/*.jpg")):
        licence = stated(known, str(path.relative_to(root)))
        if path.name.startswith(PHOTOGRAPHS) and not path.is_symlink() and licence in LICENCES:
            yield path, licence


@exit_status
def main() -> int:
    """Download, cut and write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the patches")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for package in PACKAGES:
            for path, licence in photographs(package, Path(temporary)):
                cut = squares(read_rgb(path), SIDE, AT_MOST)
                for number, square in enumerate(cut):
                    write_image(output / f"debian_{path.stem}_{number}.png", square)
                say(f"{path.stem}: {len(cut)}, {licence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
