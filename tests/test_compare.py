"""``safmn compare`` and ``safmn score``: paired differences, folders of images, grids of crops."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from safmn.cli import compare as compare_command
from safmn.cli import score as score_command
from safmn.errors import DataError
from safmn.evaluation.crops import Crop, grid, most_different_box
from safmn.evaluation.image_sets import match
from safmn.evaluation.paired import paired
from safmn.imaging import imresize, read_rgb, write_image
from safmn.metrics import psnr, ssim

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of three images, and two folders of images that other code made for it: near, and nearer but for one."""
    root = tmp_path_factory.mktemp("compared")
    rng = np.random.default_rng(1)
    for number, name in enumerate(NAMES):
        gt = imresize(rng.integers(0, 256, (9, 12, 3), np.uint8), 4)
        write_image(root / "set" / "HR" / f"{name}.png", gt)
        write_image(root / "set" / "LR_bicubic" / "X2" / f"{name}x2.png", imresize(gt, 1 / 2))
        noise = rng.normal(0, 1, gt.shape)
        for method, strength in (("theirs", 12), ("better", 30 if number == 2 else 4)):
            made = (gt + strength * noise).clip(0, 255).round().astype(np.uint8)
            write_image(root / method / f"{name}x2_{method}.png", made)
    return root


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    a, b = {"x": 1.0, "y": 2.0, "z": 4.0, "w": 3.0}, {"x": 1.5, "y": 2.2, "z": 5.0, "w": 3.1, "only": 9.0}
    found = paired(a, b)
    assert found is not None
    test = stats.ttest_rel([b[name] for name in a], [a[name] for name in a]).confidence_interval(0.95)
    assert found.mean - found.half == pytest.approx(test.low)
    assert found.mean + found.half == pytest.approx(test.high)
    assert found.images == 4
    assert found.is_clear == (test.low > 0)


def test_images_without_a_finite_difference_do_not_count() -> None:
    found = paired({"x": float("inf"), "y": 2.0}, {"x": float("inf"), "y": 2.5})
    assert found is not None
    assert (found.mean, found.images) == (0.5, 1)
    assert np.isnan(found.half)
    assert not found.is_clear
    assert paired({"x": 1.0}, {"y": 1.0}) is None


def test_compare_folders_weights_and_bicubic(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    methods = [str(folder / "theirs"), f"ours={folder / 'better'}", "bicubic", "safmn-x2"]
    files = ["-o", str(tmp_path / "t.csv"), "--per-image", str(tmp_path / "p.csv"), "--crops", str(tmp_path / "c.png")]
    files += ["--report", str(tmp_path / "r.html")]
    assert compare_command.main([*methods, "--data", str(folder / "set"), *files]) == 0
    out = capfd.readouterr().out
    with (tmp_path / "t.csv").open(encoding="utf-8") as text:
        table = {row["method"]: row for row in csv.DictReader(text)}
    with (tmp_path / "p.csv").open(encoding="utf-8") as text:
        images = {row["image"]: row for row in csv.DictReader(text)}
    assert list(table) == ["theirs", "ours", "Bicubic", "safmn-x2"]
    assert set(images) == set(NAMES)
    gt, made = read_rgb(folder / "set" / "HR" / "two.png"), read_rgb(folder / "better" / "twox2_better.png")
    assert float(images["two"]["ours psnr"]) == psnr(made, gt, crop=2, y=True)
    assert float(images["two"]["ours ssim"]) == pytest.approx(ssim(made, gt, crop=2, y=True), abs=1e-12)
    differences = [float(row["ours psnr"]) - float(row["theirs psnr"]) for row in images.values()]
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    mean, _, half = table["ours"]["set psnr, against the first"].rstrip("*").split(" ")
    assert float(mean) == pytest.approx((low + high) / 2, abs=6e-4)
    assert float(half) == pytest.approx((high - low) / 2, abs=6e-4)
    assert table["theirs"]["set psnr, against the first"] == ""
    assert table["safmn-x2"]["params (K)"] == "227.82"
    assert read_rgb(tmp_path / "c.png").shape[2] == 3
    assert "Student's t" in out
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert all(f"error of {name}" in page for name in ("theirs", "ours", "bicubic", "safmn-x2"))
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_the_crops_are_at_the_given_box(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "theirs"), str(folder / "better"), "--scale", "2", "--data", str(folder / "set")]
    picked = ["--crops", str(tmp_path / "c.png"), "--image", "set/three", "--box", "4,8,10,10"]
    assert compare_command.main([*arguments, *picked]) == 0
    assert "set/three, --box 4,8,10,10" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image", "four", "--crops", "c.png"], "Images: one, three, two"),
        (["--box", "1,2,3", "--crops", "c.png"], "--box 1,2,3"),
        (["--box", "40,2,30,3", "--crops", "c.png"], "not inside the image of 48x36"),
        (["--box", "1,2,3,4"], "belong to --crops"),
        (["--crops", "c.gif"], "--crops c.gif"),
        (["--report", "r.pdf"], "--report r.pdf"),
        (["--metrics", "psnrr"], "Did you mean 'psnr'?"),
        (["safmn-x4"], "for scale 4, but --scale is 2"),
        (["nothing-here"], "no such file"),
    ],
)
def test_mistakes_in_compare(
    more: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [str(folder / "theirs"), str(folder / "better"), "--scale", "2", "--data", str(folder / "set"), *more]
    assert compare_command.main(command) == 2
    assert message in capfd.readouterr().err


def test_most_different_box() -> None:
    a = np.zeros((60, 80, 3), np.uint8)
    b = a.copy()
    b[40:48, 10:18] = 200
    left, top, right, bottom = most_different_box([a, b, a])
    assert right - left == bottom - top == 10
    assert left <= 10 < 18 <= right
    assert top <= 40 < 48 <= bottom
    with pytest.raises(DataError, match="only one image"):
        most_different_box([a])


def test_the_grid_shows_gt_first_and_every_crop() -> None:
    gt = np.zeros((50, 70, 3), np.uint8)
    gt[10:20, 10:20] = (10, 200, 30)
    made = [np.full_like(gt, value) for value in (40, 80, 120)]
    picture = grid(gt, [Crop(f"m{value}", "1 / 2", image) for value, image in enumerate(made)], (10, 10, 20, 20))
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3)[::7]}
    assert {(10, 200, 30), (40, 40, 40), (80, 80, 80), (120, 120, 120)} <= colours
    places = [np.argwhere((picture == value).all(axis=2)).mean(axis=0) for value in ((10, 200, 30), (40, 40, 40))]
    assert places[0][1] < places[1][1]
    with pytest.raises(DataError, match="m0: the image is 69x50"):
        grid(gt, [Crop("m0", "", gt[:, :-1])], (0, 0, 5, 5))


def test_score_folders(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    folders = [str(folder / "theirs"), str(folder / "better")]
    assert score_command.main([*folders, "--gt", str(folder / "set" / "HR"), "--crop", "0", "-o", str(file)]) == 0
    with file.open(encoding="utf-8") as text:
        theirs, better = csv.DictReader(text)
    images = [
        (read_rgb(folder / "theirs" / f"{n}x2_theirs.png"), read_rgb(folder / "set" / "HR" / f"{n}.png")) for n in NAMES
    ]
    assert float(theirs["set psnr"]) == pytest.approx(np.mean([psnr(a, b, y=True) for a, b in images]), abs=5e-4)
    assert better["method"] == "better"


def test_score_without_gt_needs_a_metric_without_reference(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert score_command.main([str(folder / "theirs")]) == 2
    assert "without --gt" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("names", "gt", "message"),
    [
        (["a.png", "a_x4.png"], ["a"], None),
        (["a1.png", "ax4.png", "ab.png"], ["a"], "ax4.png"),
        (["a_1.png", "a_2.png"], ["a"], "found a_1.png, a_2.png"),
        (["b.png"], ["a"], "found none"),
        (["baby_GT.png", "baby-2-out.png"], ["baby", "baby-2"], "baby_GT.png"),
    ],
)
def test_images_are_matched_by_name(names: list[str], gt: list[str], message: str | None) -> None:
    paths = [Path(name) for name in names]
    if message is None or not message.startswith("found"):
        found = match(paths, gt, Path("folder"))
        assert found[gt[0]].name == (message or names[0])
    else:
        with pytest.raises(DataError, match=message):
            match(paths, gt, Path("folder"))


def test_images_of_another_size_are_named(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        write_image(tmp_path / f"{name}.png", np.zeros((20, 48, 3), np.uint8))
    assert score_command.main([str(tmp_path), "--gt", str(folder / "set" / "HR")]) == 2
    assert "one.png is 48x20, but its GT image" in capfd.readouterr().err


def test_slightly_smaller_images_are_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Benchmarks cut the edges of GT images, so this is no error; but the scores leave the GT's edges out."""
    for name in NAMES:
        rows = 31 if name == "two" else 36
        write_image(tmp_path / f"{name}.png", read_rgb(folder / "set" / "HR" / f"{name}.png")[:rows])
    assert score_command.main([str(tmp_path), "--gt", str(folder / "set" / "HR")]) == 0
    assert "1 of 3 images are not as large as their GT images, the first is two" in caplog.text
