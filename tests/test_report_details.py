"""Reports of unequal runs: other scales, metrics and sizes, names that need care, a run that ended with an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safmn.cli import main
from safmn.evaluation.crops import Crop, grid
from safmn.evaluation.tables import Column, Table
from safmn.imaging import write_image
from safmn.imaging.lettering import SMALLEST, broken, length
from safmn.options.differences import to_yaml
from safmn.report.build import build_page, read_sources
from safmn.report.comparable import incomparable
from safmn.report.widgets import value_text

PSNR = {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": True}


def make_run(folder: Path, *, scale: int = 4, metrics: dict[str, Any] | None = None, ending: str = "") -> Path:
    """Write the record and the log of a small run."""
    metrics = {"psnr": PSNR, "err": {"type": "calculate_max_error", "better": "lower"}} if metrics is None else metrics
    options = {"name": folder.name, "scale": scale, "train": {"total_iter": 20}, "val": {"metrics": metrics}}
    log = "2026-01-01 00:00:00,000 INFO: safmn: 1.0.0\n2026-01-01 00:00:00,000 INFO: options of the run:\n"
    log += "".join(f"  {line}\n" for line in to_yaml(options).splitlines()) + ending
    lines: list[dict[str, Any]] = [
        {"iter": i, "epoch": 0, "lr": 1e-3, "l_pix": 1 / i, "l_fft": float("nan")} for i in (10, 20)
    ]
    lines += [{"iter": 20, "set": "Set5", **dict.fromkeys(metrics, 30.0 + scale)}]
    folder.mkdir(parents=True)
    (folder / "record.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    (folder / f"train_{folder.name}.log").write_text(log, encoding="utf-8")
    return folder


def make_test(folder: Path, *, size: int = 24, scale: int = 4, metrics: dict[str, Any] | None = None) -> Path:
    """Write the report of a test with one saved image."""
    scores = dict.fromkeys(metrics or {"psnr": PSNR}, 30.0 + scale)
    options = {"val": {"metrics": metrics or {"psnr": PSNR}, "suffix": "me"}}
    content = {"name": "same", "scale": scale, "options": options}
    content["sets"] = {"Set5": {"per_image": {"bird": scores}, "mean": scores}}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
    pixels = np.random.default_rng(size).integers(0, 255, (size, size, 3), dtype=np.uint8)
    write_image(folder / "visualization/Set5/bird_me.png", pixels)
    return folder


def html_of(*folders: Path) -> str:
    return build_page(read_sources(folders)).render()


def test_metrics_keep_their_order_and_have_units(tmp_path: Path) -> None:
    page = html_of(make_run(tmp_path / "a"))
    assert page.index("psnr, Set5 <small>(dB)") < page.index("err, Set5 <small>(lower is better)")
    assert page.index("<figcaption>l_pix") < page.index("<figcaption>l_fft")


def test_an_error_at_the_end_of_a_run_is_said(tmp_path: Path) -> None:
    ending = "2026-01-01 00:00:01,000 ERROR: stopped: RuntimeError: no </script> here\n"
    page = html_of(make_run(tmp_path / "a", ending=ending))
    assert "It ended with an error: RuntimeError: no &lt;/script&gt; here" in page
    assert "ended with" not in html_of(make_run(tmp_path / "b", ending=ending + ending[:29] + "INFO: safmn: 1.0.0\n"))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"scale": 2}, "Scores are not comparable, because the scales differ (x2 and x4)."),
        ({"metrics": {"psnr": PSNR | {"crop_border": 0}}}, "psnr is not comparable, because its crop_border is 4 in a"),
        ({"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}}, "its test_y_channel is True in a and"),
        ({"metrics": {"psnr": PSNR | {"better": "higher"}}}, ""),
    ],
)
def test_scores_that_do_not_compare_have_no_best(other: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    runs = html_of(make_run(tmp_path / "runs/a"), make_run(tmp_path / "runs/b", **other))
    tests = html_of(make_test(tmp_path / "tests/a"), make_test(tmp_path / "tests/b", **other))
    for page in (runs, tests):
        assert sentence in page
        assert ('class="number best"' in page) == (not sentence)


def test_a_default_equals_the_value_written_out(tmp_path: Path) -> None:
    metrics = {"psnr": {"type": "calculate_psnr", "crop_border": 4}}
    written = {"psnr": metrics["psnr"] | {"test_y_channel": False}}
    sources = read_sources([make_run(tmp_path / "a", metrics=metrics), make_run(tmp_path / "b", metrics=written)])
    assert incomparable(sources.runs, ["psnr"]) == {}


def test_pictures_of_another_size_are_said_to_be_left_out(tmp_path: Path) -> None:
    page = html_of(make_test(tmp_path / "first"), make_test(tmp_path / "second", size=48))
    assert "Set5: pictures of second are left out where their size (48x48) is not that of the first one (24x24)" in page


def test_a_paper_is_written_without_a_page_unless_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    run = str(make_run(tmp_path / "_a$b^c$"))  # what matplotlib would leave out, and take for a formula
    assert main(["report", run, "--paper", "figures"]) == 0
    assert not list(tmp_path.glob("*.html"))
    assert "no grid of crops: there is no image" in capfd.readouterr().out
    assert (tmp_path / "figures/curves.pdf").stat().st_size > 1000
    assert main(["report", run, "--paper", "figures", "-o", "page.html"]) == 0
    assert (tmp_path / "page.html").is_file()


def test_values_of_options_are_shown_as_yaml() -> None:
    assert [value_text(value) for value in (None, True, "text", [1, {"type": "L1Loss", "w": None}])] == [
        "null",
        "true",
        "text",
        "[1, {type: L1Loss, w: null}]",
    ]


@pytest.mark.parametrize("label", ["a name of many words that is much too long", "without_spaces" * 9, "A" * 200, "ä"])
def test_long_names_fit_into_two_lines(label: str) -> None:
    lines = broken(label, 200)
    assert len(lines) <= 2
    assert all(length(line, SMALLEST) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "").startswith(label.replace(" ", "")[:20])


def test_every_cell_of_a_grid_has_the_height_of_the_longest_name() -> None:
    image = np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    short, long = (grid(image, [Crop(name, "1.00", image)], (0, 0, 20, 20)) for name in ("m", "long name " * 20))
    assert long.shape[0] > short.shape[0]


def test_latex_has_no_character_of_another_meaning() -> None:
    table = Table("t", [Column("a"), Column("b")])
    table.rows.append(["<x> | ~y_{1}", "5 %"])
    assert r"$<$x$>$ $|$ \textasciitilde{}y\_\{1\} & 5 \%" in table.latex()
