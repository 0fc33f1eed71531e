"""safmn prepare: LR images, sub-images, meta info and lmdb; interruption and damage; hints; the command line."""

from __future__ import annotations

import _thread
import os
import re
import runpy
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import safmn.prepare.image_lmdb
import safmn.prepare.lr
from safmn.cli.prepare import VERBS, main
from safmn.errors import DataError
from safmn.imaging import encode_png, imresize, mod_crop, read_image, read_rgb, write_image
from safmn.prepare import hint
from safmn.prepare.outputs import write_made
from safmn.prepare.parallel import for_each, in_order
from safmn.prepare.subimages import SubimageCut
from safmn.system.locks import ProcessLock

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def photo() -> np.ndarray:
    """Return a real photograph, (300, 451, 3) RGB."""
    return np.ascontiguousarray(pytest.importorskip("skimage.data").cat())


@pytest.fixture
def hr(tmp_path: Path, photo: np.ndarray) -> Path:
    """Return a folder with a colour image of odd size, a grey JPEG and an image with alpha."""
    folder = tmp_path / "set" / "HR"
    write_image(folder / "cat.png", photo[:125, :139])
    write_image(folder / "grey.jpg", photo[:96, :120, 1])
    write_image(folder / "alpha.png", np.dstack([photo[:96, 200:320], photo[:96, :120, 0]]))
    return folder


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file below a folder with its content and modification time."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(found)}


def make_older(path: Path) -> None:
    """Make a file's modification time a minute older."""
    then = path.stat().st_mtime - 60
    os.utime(path, (then, then))


class Interrupting:
    """Wrap a function and interrupt the main thread, like Ctrl-C, at the ``at``-th call."""

    def __init__(self, function: Any, at: int) -> None:
        self.function, self.at, self.calls, self.lock = function, at, 0, threading.Lock()

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self.lock:
            self.calls += 1
            if self.calls == self.at:
                _thread.interrupt_main()
        return self.function(*arguments, **keywords)


# --- lr ---------------------------------------------------------------------------------------------------------------


def test_lr_images_equal_the_published_ones(benchmark_dir: Path, tmp_path: Path) -> None:
    for name in ("Set5", "Set14"):
        shutil.copytree(benchmark_dir / name / "HR", tmp_path / name / "HR")
        assert main(["lr", "--hr", str(tmp_path / name / "HR"), "--scales", "4", "2", "3"]) == 0
        for scale in (2, 3, 4):
            wanted = sorted((benchmark_dir / name / "LR_bicubic" / f"X{scale}").iterdir())
            made = tmp_path / name / "LR_bicubic" / f"X{scale}"
            assert [path.name for path in wanted] == sorted(path.name for path in made.iterdir())
            for path in wanted:
                assert np.array_equal(read_image(path), read_image(made / path.name)), path


def test_lr_of_grey_alpha_and_odd_sizes(hr: Path) -> None:
    assert main(["lr", "--hr", str(hr), "--scales", "2", "3", "--jobs", "2"]) == 0
    for scale in (2, 3):
        for source in hr.iterdir():
            image = read_image(source)
            made = read_image(hr.parent / "LR_bicubic" / f"X{scale}" / f"{source.stem}x{scale}.png")
            np.testing.assert_array_equal(made, imresize(mod_crop(image, scale), 1 / scale))


def test_lr_with_another_border_and_output_folder(hr: Path, tmp_path: Path) -> None:
    assert main(["lr", "--hr", str(hr), "--scales", "4", "--border", "replicate", "-o", str(tmp_path / "LR")]) == 0
    cat = mod_crop(read_rgb(hr / "cat.png"), 4)
    made = read_rgb(tmp_path / "LR/X4/catx4.png")
    np.testing.assert_array_equal(made, imresize(cat, 1 / 4, border="replicate"))
    assert not np.array_equal(made, imresize(cat, 1 / 4))


def test_lr_images_are_made_again_for_another_border(hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, made = ["lr", "--hr", str(hr), "--scales", "4"], hr.parent / "LR_bicubic/X4/catx4.png"
    cat = mod_crop(read_rgb(hr / "cat.png"), 4)
    for border in ("symmetric", "replicate", "replicate", "symmetric"):
        assert main([*command, "--border", border]) == 0
        np.testing.assert_array_equal(read_rgb(made), imresize(cat, 1 / 4, border=border))
    assert capsys.readouterr().out.count("0 made, 3 already there") == 1


def test_lr_makes_only_missing_damaged_or_old_images(
    hr: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    command, lr = ["lr", "--hr", str(hr), "--scales", "2", "4"], hr.parent / "LR_bicubic"
    for path in hr.iterdir():
        make_older(path)
    assert main(command) == 0
    before = files(lr)
    assert len(before) == 6
    assert main(command) == 0
    assert files(lr) == before
    assert "0 made, 6 already there, 0 failed" in capsys.readouterr().out
    (lr / "X2/catx2.png").write_bytes(before["X2/catx2.png"][0][:-20])  # truncated
    (lr / "X2/greyx2.png").write_bytes(b"")
    write_image(lr / "X4/catx4.png", photo[:31, :33])  # complete, but with another size
    (lr / "X4/greyx4.png").unlink()
    assert main(command) == 0
    assert {name: content for name, (content, _) in files(lr).items()} == {n: c for n, (c, _) in before.items()}
    assert "4 made, 2 already there" in capsys.readouterr().out
    write_image(hr / "cat.png", photo[100:225, 100:239])  # a newer image of the same size
    for path in lr.rglob("catx*.png"):
        make_older(path)
    assert main(command) == 0
    assert "2 made, 4 already there" in capsys.readouterr().out
    cat = mod_crop(photo[100:225, 100:239], 4)
    np.testing.assert_array_equal(read_rgb(lr / "X4/catx4.png"), imresize(cat, 1 / 4))


def test_an_unreadable_image_is_named_and_the_others_are_made(hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (hr / "cat.png").read_bytes()
    (hr / "broken.png").write_bytes(content[: len(content) // 2])
    (hr / "text.png").write_text("no image")
    write_image(hr / "tiny.png", np.zeros((3, 40, 3), np.uint8))
    assert main(["lr", "--hr", str(hr), "--scales", "2", "4"]) == 1
    out = capsys.readouterr().out
    assert "6 made, 0 already there, 3 failed" in out
    for name, reason in (("broken.png", "truncated"), ("text.png", "cannot be read"), ("tiny.png", "too small")):
        assert any(str(hr / name) in line and reason in line for line in out.splitlines())
    assert len(files(hr.parent / "LR_bicubic")) == 6


def test_ctrl_c_leaves_complete_files_and_the_next_run_resumes(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hr, lr = tmp_path / "HR", tmp_path / "LR_bicubic"
    for number in range(40):
        write_image(hr / f"{number:02d}.png", photo[number : number + 64, :64])
    with monkeypatch.context() as patch:
        patch.setattr(safmn.prepare.lr, "write_made", Interrupting(write_made, at=5))
        assert main(["lr", "--hr", str(hr), "--scales", "2", "--jobs", "2"]) == 130
    assert "interrupted" in capsys.readouterr().err
    done = files(lr)
    assert 5 <= len(done) < 40
    assert all(name.endswith("x2.png") and "tmp" not in name for name in done)
    assert main(["lr", "--hr", str(hr), "--scales", "2", "--jobs", "2"]) == 0
    assert f"{40 - len(done)} made, {len(done)} already there" in capsys.readouterr().out
    assert done.items() <= files(lr).items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr", "--hr", "nowhere"], "no such folder"),
        (["lr", "--hr", "empty"], "empty: no image"),
        (["lr", "--hr", "twins"], "have the same name"),
        (["lr", "--hr", "set/HR", "--scales", "1"], "scales of 2 or more"),
        (["subimages", "--hr", "nowhere"], "no such folder"),
        (["subimages", "--hr", "set/HR", "--scales", "2"], "safmn prepare lr --hr set/HR"),
        (["subimages", "--hr", "set/HR", "--scales", "7"], "multiples of the scale 7"),
        (["subimages", "--hr", "set/HR", "--crop", "0"], "positive"),
        (["meta", "nowhere"], "no such folder"),
        (["meta", "empty", "--recursive"], "empty: no image"),
        (["lmdb", "nowhere"], "no such folder"),
        (["lmdb", "set/HR", "-o", "set/HR.mdb"], "must end in .lmdb"),
    ],
)
def test_mistakes_give_one_message_and_status_2(
    hr: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(hr.parent.parent)
    Path("empty").mkdir()
    write_image("twins/a.png", photo[:8, :8])
    write_image("twins/a.bmp", photo[:8, :8])
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "nowhere" not in arguments or "nowhere: " in error
    assert error.startswith("safmn: error: ")
    assert "Traceback" not in error


# --- subimages --------------------------------------------------------------------------------------------------------


def published_crops(length: int, crop: int, step: int, thresh: int) -> list[int]:
    """Return the positions at which BasicSR's extract_subimages cuts along an axis."""
    space = np.arange(0, length - crop + 1, step)
    if length - (space[-1] + crop) > thresh:
        space = np.append(space, length - crop)
    return [int(start) for start in space]


@given(st.integers(1, 50), st.integers(0, 300), st.integers(1, 60), st.integers(0, 40))
def test_squares_start_at_the_published_positions(crop: int, more: int, step: int, thresh: int) -> None:
    assert SubimageCut(crop, step, thresh).starts(crop + more) == published_crops(crop + more, crop, step, thresh)


def test_subimages_of_hr_and_lr_show_the_same_area(tmp_path: Path, photo: np.ndarray) -> None:
    hr = tmp_path / "HR"
    write_image(hr / "even.png", photo[:144, :180])
    write_image(hr / "odd.png", photo[100:250, 100:250])  # 150x150 is not a multiple of 4; LR x4 shows 148x148
    assert main(["lr", "--hr", str(hr), "--scales", "2", "3", "4"]) == 0
    numbers = ["--crop", "96", "--step", "48"]
    assert main(["subimages", "--hr", str(hr), "--scales", "2", "3", "4", *numbers]) == 0
    for stem, common in (("even", (144, 180)), ("odd", (144, 144))):
        image = read_rgb(hr / f"{stem}.png")
        corners = [(y, x) for y in published_crops(common[0], 96, 48, 0) for x in published_crops(common[1], 96, 48, 0)]
        assert len(list((tmp_path / "HR_sub").glob(f"{stem}_s*.png"))) == len(corners)
        for number, (y, x) in enumerate(corners, start=1):
            name = f"{stem}_s{number:03d}.png"
            np.testing.assert_array_equal(read_rgb(tmp_path / "HR_sub" / name), image[y : y + 96, x : x + 96])
            for s in (2, 3, 4):
                lr = read_rgb(tmp_path / "LR_bicubic" / f"X{s}" / f"{stem}x{s}.png")
                part = lr[y // s : (y + 96) // s, x // s : (x + 96) // s]
                assert y % s == x % s == 0
                np.testing.assert_array_equal(read_rgb(tmp_path / "LR_bicubic_sub" / f"X{s}" / name), part)


def test_subimages_makes_only_missing_or_damaged_squares(
    tmp_path: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "HR/cat.png", photo[:144, :192])
    command = ["subimages", "--hr", str(tmp_path / "HR"), "--crop", "96", "--step", "48"]
    assert main(command) == 0
    before = files(tmp_path / "HR_sub")
    assert len(before) == 6
    (tmp_path / "HR_sub/cat_s003.png").write_bytes(before["cat_s003.png"][0][:100])
    assert main(command) == 0
    assert "1 made, 5 already there" in capsys.readouterr().out
    after = files(tmp_path / "HR_sub")
    assert {name: content for name, (content, _) in after.items()} == {n: c for n, (c, _) in before.items()}


def test_subimages_cut_at_other_positions_are_cut_again(
    tmp_path: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last square of a 150x150 HR image starts at 54, but at 52 with its LR image at x4, which shows 148x148.

    While LR squares of the other grid exist, the command is refused and changes nothing.
    """
    image = photo[100:250, 100:250]
    write_image(tmp_path / "HR/cat.png", image)
    assert main(["lr", "--hr", str(tmp_path / "HR"), "--scales", "4"]) == 0
    command = ["subimages", "--hr", str(tmp_path / "HR"), "--crop", "96", "--step", "48"]
    for more, start in (([], 54), (["--scales", "4"], 52), ([], 54)):
        if (tmp_path / "LR_bicubic_sub").exists():
            before = files(tmp_path / "HR_sub")
            assert main([*command, *more]) == 1
            assert "X4 was cut on another grid" in capsys.readouterr().out
            assert files(tmp_path / "HR_sub") == before
            shutil.rmtree(tmp_path / "LR_bicubic_sub")
        assert main([*command, *more]) == 0
        made = sorted((tmp_path / "HR_sub").iterdir())
        assert len(made) == 9
        np.testing.assert_array_equal(read_rgb(made[-1]), image[start : start + 96, start : start + 96])


def test_scales_cut_one_after_the_other_are_refused_if_squares_move(
    tmp_path: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """HR is cropped to a multiple of 6 for x2 and x3 together, of 2 or 3 for one of them alone."""
    write_image(tmp_path / "HR/cat.png", photo[:131, :131])
    write_image(tmp_path / "HR/dog.png", photo[:132, :144])
    assert main(["lr", "--hr", str(tmp_path / "HR"), "--scales", "2", "3"]) == 0
    command = ["subimages", "--hr", str(tmp_path / "HR"), "--crop", "48", "--step", "24", "--scales"]
    assert main([*command, "2"]) == 0
    assert main([*command, "3"]) == 1
    out = capsys.readouterr().out
    assert "X2 was cut on another grid" in out
    assert "of dog" not in out
    shutil.rmtree(tmp_path / "LR_bicubic_sub")
    assert main([*command, "2", "3"]) == 0


def test_old_subimages_of_an_image_that_is_now_too_small_are_refused(
    tmp_path: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "HR/cat.png", photo[:30, :30])
    assert main(["subimages", "--hr", str(tmp_path / "HR"), "--crop", "24", "--step", "24"]) == 0
    assert main(["subimages", "--hr", str(tmp_path / "HR"), "--crop", "48", "--step", "24"]) == 1
    assert "cat_s001.png" in capsys.readouterr().out


def test_old_subimages_of_a_smaller_step_are_refused(
    tmp_path: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "HR/cat.png", photo[:144, :192])
    command = ["subimages", "--hr", str(tmp_path / "HR"), "--crop", "96", "--step"]
    assert main([*command, "24"]) == 0
    before = files(tmp_path / "HR_sub")
    assert main([*command, "48"]) == 1
    assert "cat_s007.png" in capsys.readouterr().out
    assert files(tmp_path / "HR_sub") == before


def test_subimages_of_pairs_with_wrong_sizes_are_refused_and_small_images_skipped(
    hr: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_image(hr / "small.png", photo[:50, :200])
    assert main(["lr", "--hr", str(hr), "--scales", "2"]) == 0
    write_image(hr.parent / "LR_bicubic/X2/catx2.png", photo[:60, :69])  # should be 62x69
    with caplog.at_level("WARNING", "safmn"):
        assert main(["subimages", "--hr", str(hr), "--scales", "2", "--crop", "96", "--step", "48"]) == 1
    out = capsys.readouterr().out
    assert "catx2.png is 69x60" in out
    assert "makes 69x62 at x2" in out
    assert "1 failed" in out
    assert "small.png: 200x50" in caplog.text
    assert sorted(p.name for p in (hr.parent / "HR_sub").iterdir()) == ["alpha_s001.png", "alpha_s002.png",
                                                                       "grey_s001.png", "grey_s002.png"]  # fmt: skip


# --- meta -------------------------------------------------------------------------------------------------------------


def test_meta_info(hr: Path, photo: np.ndarray) -> None:
    assert main(["meta", str(hr)]) == 0
    lines = (hr.parent / "meta_info_HR.txt").read_text().splitlines()
    assert lines == ["alpha.png (96,120,3)", "cat.png (125,139,3)", "grey.jpg (96,120,1)"]
    write_image(hr / "sub/a b.webp", photo[:20, :30])
    assert main(["meta", str(hr), "--recursive", "-o", str(hr.parent / "list.txt")]) == 0
    assert (hr.parent / "list.txt").read_text().splitlines() == [*lines, "sub/a b.webp (20,30,3)"]


def test_meta_info_names_an_unreadable_image(hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hr / "text.png").write_text("no image")
    assert main(["meta", str(hr)]) == 2
    assert "text.png" in capsys.readouterr().err
    assert not (hr.parent / "meta_info_HR.txt").exists()


# --- lmdb -------------------------------------------------------------------------------------------------------------


def test_basicsr_reads_our_lmdb(hr: Path) -> None:
    from basicsr.data.data_util import paired_paths_from_lmdb
    from basicsr.utils import FileClient, imfrombytes

    assert main(["lr", "--hr", str(hr), "--scales", "4"]) == 0
    lr = hr.parent / "LR_bicubic/X4"
    assert main(["lmdb", str(hr)]) == 0
    assert main(["lmdb", str(lr), "--drop", "x4", "-o", str(hr.parent / "X4.lmdb"), "--compression", "3"]) == 0
    folders = [str(hr.parent / "X4.lmdb"), str(hr.parent / "HR.lmdb")]
    assert len(paired_paths_from_lmdb(folders, ["lq", "gt"])) == 3
    assert (hr.parent / "HR.lmdb/meta_info.txt").read_text().splitlines() == [
        "alpha.png (96,120,4) 1", "cat.png (125,139,3) 1", "grey.png (96,120,1) 1",
    ]  # fmt: skip
    assert "catx4" not in (hr.parent / "X4.lmdb/meta_info.txt").read_text()
    client = FileClient("lmdb", db_paths=folders, client_keys=["lq", "gt"])
    for key, source in (("cat", "cat.png"), ("grey", "grey.jpg"), ("alpha", "alpha.png")):
        for side, path in (("gt", hr / source), ("lq", lr / f"{key}x4.png")):
            np.testing.assert_array_equal(imfrombytes(client.get(key, side))[..., ::-1], read_rgb(path))


def test_lmdb_resumes_after_ctrl_c(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(40):
        write_image(tmp_path / f"HR/{number:02d}.png", photo[number : number + 64, :64])
        make_older(tmp_path / f"HR/{number:02d}.png")
    with monkeypatch.context() as patch:
        encode = Interrupting(encode_png, at=20)
        patch.setattr(safmn.prepare.image_lmdb, "encode_png", encode)
        assert main(["lmdb", str(tmp_path / "HR"), "--jobs", "2"]) == 130
    assert not (tmp_path / "HR.lmdb").exists()
    (tmp_path / "HR/39.png").unlink()  # must not be in the result, even if it is already in the unfinished build
    assert main(["lmdb", str(tmp_path / "HR"), "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert 0 < int(out.split(": ")[1].split(" images encoded")[0]) < 39
    assert not (tmp_path / "HR.lmdb.partial").exists()
    with lmdb.open(str(tmp_path / "HR.lmdb"), readonly=True, lock=False) as base, base.begin() as transaction:
        assert transaction.stat()["entries"] == 39
        for number in range(39):
            content = np.frombuffer(transaction.get(f"{number:02d}".encode()), np.uint8)
            np.testing.assert_array_equal(cv2.imdecode(content, -1)[..., ::-1], photo[number : number + 64, :64])


def test_an_existing_lmdb_is_kept_if_up_to_date_and_refused_otherwise(
    hr: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    base = hr.parent / "HR.lmdb"
    assert main(["lmdb", str(hr)]) == 0
    before = files(base)
    assert main(["lmdb", str(hr)]) == 0
    assert "was up to date" in capsys.readouterr().out
    assert files(base) == before
    make_older(base / "data.mdb")
    assert main(["lmdb", str(hr)]) == 2
    assert "is older than" in capsys.readouterr().err
    write_image(hr / "new.png", photo[:8, :8])
    assert main(["lmdb", str(hr)]) == 2
    assert "other images" in capsys.readouterr().err
    (base / "meta_info.txt").unlink()
    assert main(["lmdb", str(hr)]) == 2
    assert "complete lmdb" in capsys.readouterr().err


def test_lmdb_of_another_folder_with_the_same_names(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unfinished build of other images starts again; a finished one is refused."""
    for number in range(12):
        for folder, image in (("A", photo), ("B", photo[::-1])):
            write_image(tmp_path / folder / f"{number:02d}.png", image[number : number + 32, :32])
            make_older(tmp_path / folder / f"{number:02d}.png")
    base = tmp_path / "x.lmdb"
    with monkeypatch.context() as patch:
        patch.setattr(safmn.prepare.image_lmdb, "encode_png", Interrupting(encode_png, at=6))
        assert main(["lmdb", str(tmp_path / "A"), "-o", str(base), "--jobs", "1"]) == 130
    assert main(["lmdb", str(tmp_path / "B"), "-o", str(base)]) == 0
    with lmdb.open(str(base), readonly=True, lock=False) as environment, environment.begin() as transaction:
        for number in range(12):
            content = np.frombuffer(transaction.get(f"{number:02d}".encode()), np.uint8)
            np.testing.assert_array_equal(cv2.imdecode(content, -1)[..., ::-1], photo[::-1][number : number + 32, :32])
    assert main(["lmdb", str(tmp_path / "A"), "-o", str(base)]) == 2
    assert "another image" in capsys.readouterr().err


def test_lmdb_with_equal_keys_is_refused(tmp_path: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "ax4.png"):
        write_image(tmp_path / "LR" / name, photo[:8, :8])
    assert main(["lmdb", str(tmp_path / "LR"), "--drop", "x4"]) == 2
    assert "a.png and" in capsys.readouterr().err
    assert not (tmp_path / "LR.lmdb").exists()


@pytest.mark.parametrize(
    ("damage", "said"), [("cut", "20000 of"), ("header", "cannot be read"), ("text", "not a complete lmdb")]
)
def test_a_damaged_lmdb_is_refused_by_name(
    hr: Path, capsys: pytest.CaptureFixture[str], damage: str, said: str
) -> None:
    base = hr.parent / "HR.lmdb"
    assert main(["lmdb", str(hr)]) == 0
    if damage == "text":
        (base / "meta_info.txt").write_bytes(b"\xff\xfe")
    else:
        data = (base / "data.mdb").read_bytes()
        (base / "data.mdb").write_bytes(data[:20000] if damage == "cut" else bytes(4096) + data[4096:])
    assert main(["lmdb", str(hr)]) == 2
    error = capsys.readouterr().err
    assert "HR.lmdb" in error
    assert said in error


def test_a_truncated_lmdb_build_asks_for_a_restart(hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lmdb", str(hr)]) == 0
    building = (hr.parent / "HR.lmdb").rename(hr.parent / "HR.lmdb.partial")
    os.truncate(building / "data.mdb", 20000)
    assert main(["lmdb", str(hr)]) == 2
    assert "--restart" in capsys.readouterr().err
    assert main(["lmdb", str(hr), "--restart"]) == 0


def test_outputs_of_the_current_folder_get_its_name(hr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hr)
    for arguments in (["meta", "."], ["lmdb", "."], ["lr", "--hr", ".", "--scales", "2"]):
        assert main(arguments) == 0
    assert {"meta_info_HR.txt", "HR.lmdb", "LR_bicubic"} <= {path.name for path in hr.parent.iterdir()}


def test_lmdb_has_one_builder_at_a_time(
    hr: Path, locked_elsewhere: Callable[[Path], AbstractContextManager[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with locked_elsewhere(hr.parent / "HR.lmdb.lock"):
        assert main(["lmdb", str(hr)]) == 2
    assert re.search(r"process \d+ on .* is writing", capsys.readouterr().err)
    assert main(["lmdb", str(hr)]) == 0


def test_an_lmdb_that_another_process_finishes_meanwhile_is_kept(hr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be finished between the first look and the lock."""
    take, taken = ProcessLock.take, []

    def take_late(lock: ProcessLock) -> bool:
        if not taken:
            taken.append(lock)
            assert main(["lmdb", str(hr)]) == 0
        return take(lock)

    monkeypatch.setattr(ProcessLock, "take", take_late)
    assert safmn.prepare.image_lmdb.make_lmdb(hr, hr.parent / "HR.lmdb") == 0
    assert taken
    assert not list(hr.parent.glob("*.lock*"))


def test_lmdb_names_an_unreadable_image_and_keeps_the_rest(hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (hr / "cat.png").read_bytes()
    for path in hr.iterdir():
        make_older(path)
    (hr / "zebra.png").write_bytes(content[: len(content) // 2])
    assert main(["lmdb", str(hr)]) == 2
    assert "zebra.png" in capsys.readouterr().err
    (hr / "zebra.png").write_bytes(content)
    assert main(["lmdb", str(hr)]) == 0
    assert "1 images encoded" in capsys.readouterr().out


# --- parallel ---------------------------------------------------------------------------------------------------------


def test_results_keep_their_order_and_thread_limits_are_restored() -> None:
    before = cv2.getNumThreads(), torch.get_num_threads()
    seen = []
    for result in in_order(lambda number: (number, cv2.getNumThreads(), torch.get_num_threads()), range(100), 4):
        seen.append(result())
    assert seen == [(number, 1, 1) for number in range(100)]
    assert (cv2.getNumThreads(), torch.get_num_threads()) == before


@pytest.mark.parametrize("moment", range(1, 41, 3))
def test_ctrl_c_at_any_moment_raises_and_restores_the_handler(moment: int) -> None:
    before, threads = signal.getsignal(signal.SIGINT), set(threading.enumerate())  # torch.compile leaves threads
    work = Interrupting(lambda number: (1, 0), at=moment)
    with pytest.raises(KeyboardInterrupt):
        for_each(work, range(40), jobs=4, description="test")
    assert moment <= work.calls
    assert signal.getsignal(signal.SIGINT) is before
    assert not [thread for thread in set(threading.enumerate()) - threads if "ThreadPool" in thread.name]


def test_work_may_run_outside_the_main_thread() -> None:
    results: list[int] = []
    thread = threading.Thread(
        target=lambda: results.append(for_each(lambda number: (1, 0), range(9), jobs=2, description="test").made)
    )
    thread.start()
    thread.join(30)
    assert results == [9]


def test_a_data_error_fails_one_item_and_other_errors_are_raised() -> None:
    def work(number: int) -> tuple[int, int]:
        if number % 10 == 3:
            raise DataError(f"image {number} is bad")
        return 1, 0

    outcome = for_each(work, range(30), jobs=3, description="test")
    assert (outcome.made, outcome.failures) == (27, [f"image {number} is bad" for number in (3, 13, 23)])

    def full(number: int) -> tuple[int, int]:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        for_each(full, range(30), jobs=3, description="test")


# --- hints and the command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Set5", "safmn prepare download benchmark"),
        ("datasets/benchmark/Urban100/LR_bicubic/X4", "safmn prepare download benchmark"),
        ("datasets/benchmark/DIV2K_val100/HR", "safmn prepare download div2k-val"),
        ("datasets/benchmark/Manga109/HR", "manga109.org"),
        ("datasets/DF2K/HR", "safmn prepare download df2k"),
        ("datasets/DF2K/HR_sub", "safmn prepare download df2k; make it with: safmn prepare subimages --hr"),
        ("x/HR.lmdb", "safmn prepare lmdb x/HR"),
        ("x/x4.store", "safmn prepare store"),
        ("x/meta_info.txt", "safmn prepare meta"),
        ("x/images", "datasets/README.md"),
    ],
)
def test_hint(path: str, expected: str) -> None:
    assert expected in hint(path)


def test_hint_names_commands_that_make_the_set(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running the commands of the hints literally makes the missing set."""
    monkeypatch.chdir(tmp_path)
    missing = Path("mine/LR_bicubic_sub/X4")
    assert "mine/HR first" in hint(missing)
    write_image("mine/HR/cat.png", np.tile(photo, (2, 2, 1)))
    commands = hint(missing).removeprefix("Make it with: ").split(" && ")
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("safmn prepare ")
        assert main(command.removeprefix("safmn prepare ").split()) == 0
    assert len(list(missing.iterdir())) == 6
    shutil.rmtree("mine/LR_bicubic/X4")
    write_image("Set5/HR/cat.png", photo)
    assert hint("Set5/LR_bicubic/X4") == "Make it with: safmn prepare lr --hr Set5/HR --scales 4"
    command = hint("mine/LR_bicubic/X4").removeprefix("Make it with: safmn prepare ")
    assert main(command.split()) == 0
    assert Path("mine/LR_bicubic/X4/catx4.png").is_file()


def test_help_of_the_command_and_of_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)
    assert main([]) == 2
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert f"safmn prepare {verb}" in capsys.readouterr().out
    assert main(["subimage"]) == 2
    assert "Did you mean 'subimages'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "verb"),
    [
        ("make_lr", "lr"),
        ("extract_subimages", "subimages"),
        ("make_meta_info", "meta"),
        ("make_lmdb", "lmdb"),
        ("make_store", "store"),
        ("download_data", "download"),
    ],
)
def test_scripts_run_the_verbs(
    script: str, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--help"])
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / "scripts" / f"{script}.py"), run_name="__main__")
    assert stop.value.code == 0
    assert f"safmn prepare {verb}" in capsys.readouterr().out
