"""``safmn degrade``: replay of recipes, grids of draws, and messages for mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from safmn.cli.degrade import main
from safmn.data import RealESRGANDataset, SampleKey, sample_rng
from safmn.imaging import list_images, read_rgb, write_image
from safmn.options import load_options

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def image(photos_dir: Path, tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    write_image(path, read_rgb(list_images(photos_dir / "val")[4])[:420, :450])
    return str(path)


def test_a_saved_recipe_gives_an_identical_file(image: str, tmp_path: Path) -> None:
    for index in range(4):
        first, second, recipe = (str(tmp_path / name) for name in ("a.png", "b.png", "recipe.json"))
        assert main([image, "-o", first, "--seed", "3", "--index", str(index), "--save-recipe", recipe]) == 0
        assert main([image, "-o", second, "--recipe", recipe]) == 0
        assert Path(first).read_bytes() == Path(second).read_bytes()
    assert read_rgb(first).shape == (105, 112, 3)


def test_seed_epoch_and_index_each_change_the_result(image: str, tmp_path: Path) -> None:
    found = set()
    for number, extra in enumerate(([], ["--seed", "1"], ["--epoch", "1"], ["--index", "1"], ["--scale", "2"])):
        output = tmp_path / f"{number}.png"
        assert main([image, "-o", str(output), *extra]) == 0
        found.add(output.read_bytes())
    assert len(found) == 5


def test_a_patch_equals_that_of_training(image: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = str(request.config.rootpath / "options" / "train_real_x4.yml")
    output = str(tmp_path / "lq.png")
    assert main([image, "-o", output, "--opt", file, "--patch", "--seed", "10", "--epoch", "2", "--index", "7"]) == 0
    options = load_options(file, mode="train", overrides=[f"datasets:train:dataroot_gt={tmp_path}"])
    section = {key: value for key, value in options.datasets["train"].items() if key != "meta_info"}
    section |= {"degradation": options.degradation, "phase": "train", "scale": 4}
    Path(output).rename(tmp_path / "lq.aside")  # the data set must only contain the GT
    lq = RealESRGANDataset(section).sample(0, sample_rng(10, SampleKey(2, 7)))["lq"]
    (tmp_path / "lq.aside").rename(output)
    assert torch.equal(lq, torch.from_numpy(read_rgb(output).transpose(2, 0, 1).astype(np.float32) / np.float32(255)))


def test_a_grid_shows_consecutive_draws(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, single = str(tmp_path / "sheet.png"), str(tmp_path / "single.png")
    assert main([image, "-o", sheet, "--grid", "3x2", "--index", "5"]) == 0
    legend = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(legend) == [f"index {number}" for number in range(5, 11)]
    assert main([image, "-o", single, "--index", "9"]) == 0
    assert legend["index 9"] == capsys.readouterr().out.strip().split(": ", 1)[1]
    picture = read_rgb(single).repeat(2, axis=0).repeat(2, axis=1)  # 105x112, shown at twice the size
    height, width = picture.shape[:2]
    found = read_rgb(sheet)
    assert found.shape == (2 * (height + 16 + 4) + 4, 3 * (width + 4) + 4, 3)
    # index 9 is in the second row and column: 5 + 3 + 1
    assert np.array_equal(found[height + 24 : 2 * height + 24, width + 8 : 2 * width + 8], picture)


def test_an_option_file_without_degradation_is_rejected(
    image: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: Capture
) -> None:
    file = str(request.config.rootpath / "options" / "train_x4.yml")
    assert main([image, "-o", str(tmp_path / "a.png"), "--opt", file]) == 2
    assert re.search(r"datasets\.train .*PairedImageDataset", capsys.readouterr().err)


def test_options_can_be_changed_on_the_command_line(image: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = str(request.config.rootpath / "options" / "train_real_x4.yml")
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    assert main([image, "-o", a, "--opt", file]) == 0
    assert main([image, "-o", b, "--opt", file, "--force_yml", "degradation:bicubic_prob=1"]) == 0
    assert Path(a).read_bytes() != Path(b).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "5"], "columns x rows"),
        (["--grid", "100x100"], "at most 400"),
        (["--grid", "2x2", "--save-recipe", "r.json"], "one recipe"),
        (["--recipe", "r.json", "--seed", "3"], "--seed has no effect"),
        (["--recipe", "r.json", "--index", "3"], "--index has no effect"),
        (["--recipe", "missing.json"], "missing.json"),
        (["--index", "-1"], "must not be negative"),
        (["--opt", "missing.yml"], "missing.yml"),
        (["--force_yml", "scale=2"], "--opt"),
        (["--scale", "0"], "--scale 0"),
    ],
)
def test_mistakes_are_reported_and_nothing_is_written(
    arguments: list[str], message: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([image, "-o", str(tmp_path / "out.png"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_a_folder_as_output_and_unreadable_inputs_are_rejected(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([image, "-o", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main([image, "-o", str(tmp_path / "out.png"), "--recipe", image]) == 2
    assert "not a degradation recipe" in capsys.readouterr().err
    assert main(["missing.png", "-o", str(tmp_path / "out.png")]) == 2
    assert "missing.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png", "-o", "./photo.png"], r"--output \./photo\.png .*same file as IMAGE"),
        (["photo.png", "-o", "link.png"], r"--output link\.png .*same file as IMAGE"),
        (["photo.png", "-o", "x.png", "--save-recipe", "x.png"], r"--save-recipe x\.png .*same file as --output"),
        (["photo.png", "-o", "x.png", "--save-recipe", "photo.png"], "same file as IMAGE"),
        (["photo.png", "-o", "r.json", "--recipe", "r.json"], r"--output r\.json .*same file as --recipe"),
        (["photo.png", "-o", "x.png", "--recipe", "r.json", "--save-recipe", "r.json"], "same file as --recipe"),
    ],
)
def test_an_input_file_is_never_overwritten(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image("photo.png", np.zeros((8, 8, 3), np.uint8))
    Path("link.png").symlink_to("photo.png")
    Path("r.json").write_text("{}", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_image_smaller_than_the_scale_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image("small.png", np.zeros((3, 5, 3), np.uint8))
    assert main(["small.png", "-o", "lq.png", "--scale", "2", "--save-recipe", "r.json"]) == 0
    recipe = Path("r.json").read_text(encoding="utf-8")
    Path("r.json").write_text(recipe.replace('"scale": 2', '"scale": 7', 1), encoding="utf-8")
    for arguments, scale in (([], 4), (["--recipe", "r.json"], 7), (["--grid", "2x2"], 4)):
        assert main(["small.png", "-o", "lq2.png", *arguments]) == 2
        assert re.search(rf"small\.png: 5x3 .*scale {scale}\b", capsys.readouterr().err)
    assert main(["small.png", "-o", "patch.png", "--patch"]) == 0  # mirror-padded, as in training
