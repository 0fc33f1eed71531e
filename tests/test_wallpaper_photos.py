"""Training patches from wallpaper packages: licences and files match the list, and squares are always the same."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import wallpaper_photos
from skimage import data

from safmn.imaging import imresize, read_rgb, write_image

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2020, Somebody
License: GPL-3+
 The text.

Files: debian/*
License: GPL-2

Files: coffee.png
       cat*.png
       Two Cups_by_A_Author.png
Copyright: 2021, A. Author
License: CC-BY-SA-4.0

License: CC-BY-SA-4.0
 Its text.
"""
FOLDER = "usr/share/backgrounds"
Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("file", "licence"),
    [
        ("coffee.png", "CC-BY-SA-4.0"),
        ("cathedral.png", "CC-BY-SA-4.0"),
        ("Coffee.png", "CC-BY-SA-4.0"),
        ("two_cups_by_a_author.png", "CC-BY-SA-4.0"),
        ("logo.png", "GPL-3+"),
        ("debian/rules", "GPL-2"),
    ],
)
def test_licence_that_a_package_states(file: str, licence: str) -> None:
    known = wallpaper_photos.licences(COPYRIGHT)
    assert wallpaper_photos.stated(known, file if "/" in file else f"{FOLDER}/{file}") == licence


def test_no_licence_is_stated_without_a_machine_readable_file() -> None:
    assert wallpaper_photos.stated(wallpaper_photos.licences("Written by me.\n\nLicense: see below"), "a.jpg") == "none"


def test_the_published_list_is_sorted_unique_and_free() -> None:
    photographs = wallpaper_photos.read_list(wallpaper_photos.LIST)
    assert len({photograph.sha256 for photograph in photographs}) == len(photographs) > 800
    free = ("CC0", "CC-BY", "Public-Domain", "Unsplash", "Pexels")
    assert all(photograph.licence.replace(" ", "-").startswith(free) for photograph in photographs)
    assert [row.package for row in photographs] == sorted(row.package for row in photographs)


def test_squares_are_those_with_most_detail_of_the_halved_photograph() -> None:
    rng = np.random.default_rng(5)
    image = np.zeros((1601, 2400, 3), np.uint8)  # halved, it has room for 2 rows and 3 columns of squares
    # with margins of 16 rows and 24 columns
    strength = {(0, 1): 90, (1, 2): 120, (1, 0): 60}
    for (row, column), high in strength.items():
        y, x = 2 * (16 + row * 384), 2 * (24 + column * 384)
        image[y : y + 768, x : x + 768] = rng.integers(0, high, (768, 768, 3))
    found = wallpaper_photos.squares(image)
    half = cv2.resize(image[:1600], (1200, 800), interpolation=cv2.INTER_AREA)
    assert len(found) == 3
    for square, (row, column) in zip(found, sorted(strength, key=lambda place: -strength[place]), strict=True):
        y, x = 16 + row * 384, 24 + column * 384
        assert np.array_equal(square, half[y : y + 384, x : x + 384])


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
class TestPackages:
    """Tests with a package that the fixture ``rows`` builds."""

    @pytest.fixture
    def rows(self, tmp_path: Path) -> list[list[str]]:
        """Build ``downloads/paper_1_all.deb``, and return the rows of its list."""
        root = tmp_path / "root"
        for folder in (FOLDER, "usr/share/doc/paper", "DEBIAN"):
            (root / folder).mkdir(parents=True)
        fields = (
            "Package: paper\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: x\n"
        )
        (root / "DEBIAN/control").write_text(fields)
        (root / "usr/share/doc/paper/copyright").write_text(COPYRIGHT)
        image = np.tile(data.coffee(), (2, 2, 1))
        rows = []
        for name in ("coffee.png", "cathedral.png"):
            write_image(root / FOLDER / name, image)
            image = image[::-1].copy()
            digest = hashlib.sha256((root / FOLDER / name).read_bytes()).hexdigest()
            rows.append(["debian:pool/paper_1_all.deb", f"{FOLDER}/{name}", digest, "CC-BY-SA-4.0", "2021, A. Author"])
        (tmp_path / "downloads").mkdir()
        package = tmp_path / "downloads" / "paper_1_all.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-b", str(root), str(package)], check=True, capture_output=True
        )
        return rows

    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
        """A function that runs the script with a list of these rows and returns its exit status."""

        def run(rows: list[list[str]], *arguments: str) -> int:
            head = "package\tfile\tsha256\tlicence\tcopyright\n"
            (tmp_path / "list.tsv").write_text(head + "".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
            command = ["wallpaper_photos.py", "-o", str(tmp_path / "out"), "--list", str(tmp_path / "list.tsv")]
            monkeypatch.setattr("sys.argv", [*command, "--downloads", str(tmp_path / "downloads"), *arguments])
            return wallpaper_photos.main()

        return run

    def test_writes_what_is_missing(self, tmp_path: Path, rows: list[list[str]], run: Run) -> None:
        assert run(rows) == 0
        expected = wallpaper_photos.squares(np.tile(data.coffee(), (2, 2, 1)))
        assert len(expected) == 1
        name = f"wallpaper_{rows[0][2][:12]}_00.png"
        assert np.array_equal(read_rgb(tmp_path / "out" / name), expected[0])
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
        assert len(before) == 2
        (tmp_path / "downloads" / "paper_1_all.deb").unlink()  # the second run does not need the package
        assert run(rows) == 0
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before

    def test_writes_whole_photographs(self, tmp_path: Path, rows: list[list[str]], run: Run) -> None:
        image = np.tile(data.coffee(), (2, 2, 1))
        assert image.shape == (800, 1200, 3)
        for _ in range(2):
            assert run(rows, "--whole", "600", "300") == 0
            name = f"whole300_{rows[0][2][:12]}.png"
            assert np.array_equal(read_rgb(tmp_path / "out" / name), imresize(image, 0.375))
            assert len(list((tmp_path / "out").iterdir())) == 2  # 600 pixels would be scale 0.75, which is too large
            (tmp_path / "out" / name).unlink()  # the second run writes this file again

    def test_writes_whole_photographs_in_three_sizes_except_those_held_out(
        self, tmp_path: Path, rows: list[list[str]], run: Run
    ) -> None:
        held = "package\tfile\tsha256\tlicence\tcopyright\n" + "\t".join(rows[1]) + "\n"
        (tmp_path / "held.tsv").write_text(held, encoding="utf-8")
        assert run(rows, "--long-side", "600", "--leave-out", str(tmp_path / "held.tsv")) == 0
        largest = imresize(np.tile(data.coffee(), (2, 2, 1)), 0.5)
        copies = {"100": largest, "070": imresize(largest, 0.7), "050": imresize(largest, 0.5)}
        expected = {f"photo_{rows[0][2][:12]}_{size}.png": image for size, image in copies.items()}
        assert {path.name for path in (tmp_path / "out").iterdir()} == set(expected)
        for name, image in expected.items():
            assert np.array_equal(read_rgb(tmp_path / "out" / name), image)

    @pytest.mark.parametrize(
        ("column", "value", "said"),
        [
            (2, "0" * 64, "cathedral.png differs"),
            (3, "CC0", "CC-BY-SA-4.0, not CC0"),
            (1, "usr/no.png", "usr/no.png differs"),
        ],
    )
    def test_names_what_differs_from_the_list(
        self, tmp_path: Path, rows: list[list[str]], run: Run, capfd: Capture, column: int, value: str, said: str
    ) -> None:
        rows[1][column] = value
        assert run(rows) == 2
        assert said in capfd.readouterr().err
        assert not list((tmp_path / "out").iterdir())

    @pytest.mark.parametrize(("kept", "said"), [(None, "another version of the package"), (200, "cannot be unpacked")])
    def test_names_a_package_that_is_missing_or_damaged(
        self,
        tmp_path: Path,
        rows: list[list[str]],
        run: Run,
        monkeypatch: pytest.MonkeyPatch,
        capfd: Capture,
        kept: int | None,
        said: str,
    ) -> None:
        monkeypatch.setitem(wallpaper_photos.ARCHIVES, "debian", (tmp_path / "nowhere").as_uri() + "/")
        package = tmp_path / "downloads" / "paper_1_all.deb"
        content = package.read_bytes()
        package.unlink()
        if kept is not None:
            package.write_bytes(content[:kept])
        assert run(rows) == 2
        assert said in capfd.readouterr().err
        assert not list((tmp_path / "out").iterdir())
        assert not list((tmp_path / "downloads").glob("*.part"))
