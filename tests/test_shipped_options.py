"""The option files of the package: listed, printed, and used by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from safmn.cli import main
from safmn.errors import OptionError
from safmn.options import load_options
from safmn.options.shipped import description, find_option_file, shipped_files

REPOSITORY = Path(__file__).resolve().parent.parent


def test_each_file_is_listed_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {path.stem for path in (REPOSITORY / "options").glob("*.yml")}
    assert {"train_x4", "test_x2", "demo_x4"} <= names
    assert {line.split()[0] for line in lines[: len(names)]} == names
    assert all(len(line.split()) > 5 for line in lines[: len(names)])


def test_a_description_is_the_first_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text("# yaml-language-server: $schema=x\n# Trains a thing\n# on 0.5 MB. Takes long.\nname: a\n")
    assert description(file) == "Trains a thing on 0.5 MB."


def test_a_printed_file_can_be_used_anywhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["options", "demo_x4"]) == 0
    text = capsys.readouterr().out
    Path("my.yml").write_text(text, encoding="utf-8")
    assert load_options("my.yml", mode="train").raw == load_options("demo_x4", mode="train").raw
    schema = text.splitlines()[0].partition("$schema=")[2]
    assert schema.startswith("file://")
    assert Path(schema.removeprefix("file://")).is_file()


def test_a_file_in_the_current_folder_comes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_option_file("train_x4.yml") == shipped_files()["train_x4"]
    content = yaml.safe_load(shipped_files()["train_x4"].read_text()) | {"name": "mine"}
    Path("train_x4.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_options("train_x4.yml", mode="train").name == "mine"
    assert load_options("train_x4", mode="train").name == "SAFMN_x4"


@pytest.mark.parametrize("name", ["train_x5", "train_x5.yml"])
def test_a_wrong_name_is_named_with_a_similar_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=rf"{name}.*'train_x\d'.*safmn options"):
        load_options(name, mode="train")
    assert main(["options", name]) == 2
    assert "train_x" in capsys.readouterr().err


def test_training_names_the_command_that_gets_missing_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-opt", "train_x4", "--force_yml", "num_gpu=0"]) == 2
    error = capsys.readouterr().err
    assert "'DF2K'" in error
    assert "safmn prepare download df2k" in error
    assert "safmn prepare subimages" in error
