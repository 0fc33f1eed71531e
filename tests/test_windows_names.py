"""Names of files on Windows: what it does not allow, and backslashes in lists of images."""

from __future__ import annotations

import ntpath
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from safmn.data import sources
from safmn.data.sources import names_from_meta_info
from safmn.errors import DataError
from safmn.imaging import write_image
from safmn.imaging.file_names import folder_mistake
from safmn.inference.file_jobs import plan
from safmn.prepare import store
from safmn.prepare.meta import write_meta
from safmn.system import files
from safmn.system.files import atomic_path, windows_mistake

REFUSED = {
    "a:b": "it contains ':'",
    "what?.png": "it contains '?'",
    "a\tb": r"it contains '\\t'",
    "CON": "CON is a device",
    "aux.png": "AUX is a device",
    "Nul .tar.gz": "NUL is a device",
    "com1": "COM1 is a device",
    "run.": "it ends in a dot or a space",
    "run ": "it ends in a dot or a space",
}
ALLOWED = ("photo.png", ".hidden", "console", "com10.png", "SAFMN_x4", "a b.c", "写真.png", "auxiliary.txt")


@pytest.fixture
def on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that ask for the system get the answer Windows."""
    for module in (files, sys.modules[folder_mistake.__module__]):
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform="win32"))


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_windows_refuses(name: str, tmp_path: Path, on_windows: None) -> None:
    with pytest.raises(OSError, match=f"is no name for a file on Windows: {REFUSED[name]}.*; choose another"):
        atomic_path(tmp_path / name).__enter__()
    said = folder_mistake(name) or ""
    assert "is no name for a file on Windows" in said or "it contains control characters" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ALLOWED)
def test_names_that_windows_allows(name: str, tmp_path: Path, on_windows: None) -> None:
    assert windows_mistake(name) is None
    assert folder_mistake(name) is None
    with atomic_path(tmp_path / name) as temporary:
        temporary.touch()
    assert (tmp_path / name).exists()


def test_other_systems_allow_these_names(tmp_path: Path) -> None:
    assert folder_mistake("a:b") is None
    with atomic_path(tmp_path / "aux.png") as temporary:
        temporary.touch()


def test_upscaling_refuses_such_an_output_before_any_work(tmp_path: Path, on_windows: None) -> None:
    write_image(tmp_path / "in.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(OSError, match=r"'nul\.png' is no name for a file on Windows"):
        plan([str(tmp_path / "in.png")], tmp_path / "nul.png")


def test_backslashes_in_a_list_separate_folders(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfsub\\0001.png (4,4,3)\r\nsub/0002.png\r\n0003.png (4,4,3)\r\n")
    assert names_from_meta_info(tmp_path / "list.txt") == ["sub/0001.png", "sub/0002.png", "0003.png"]
    (tmp_path / "list.txt").write_bytes(b"..\\0001.png\r\n")
    with pytest.raises(DataError, match="names must be below the folder of the images"):
        names_from_meta_info(tmp_path / "list.txt")


@pytest.mark.parametrize("name", [r"C:\a.png", "C:a.png", r"\\server\share\a.png", r"\a.png"])
def test_a_list_cannot_name_another_drive(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_text(f"{name}\n", encoding="utf-8")
    monkeypatch.setattr(sources, "os", SimpleNamespace(path=ntpath))
    with pytest.raises(DataError, match="names must be below the folder of the images"):
        names_from_meta_info(tmp_path / "list.txt")


def test_a_list_is_not_made_of_names_with_backslashes(tmp_path: Path) -> None:
    write_image(tmp_path / "a\\b.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="a backslash separates folders; rename"):
        write_meta(tmp_path, tmp_path / "list.txt")


def test_a_store_has_the_same_names_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "os", SimpleNamespace(path=ntpath, sep="\\"))
    assert store._name(r"D:\data\HR\sub/0001.png", r"D:\data\HR") == "sub/0001.png"
    assert store._name(r"D:\data\HR\sub\0001.png", r"D:/data/HR") == "sub/0001.png"
