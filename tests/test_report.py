"""Reports: their numbers are the record's, nothing is requested from outside, and unfinished or foreign runs work."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import cv2
import numpy as np
import pytest
import report_browser
import tiny_run

from safmn.cli import main
from safmn.imaging import read_rgb, write_image
from safmn.report.logs import read_logs
from safmn.report.runs import read_run
from safmn.report.scores import ERROR_RANGE, error_map
from safmn.report.training import spread
from safmn.training.experiment import Experiment
from safmn.training.reporter import Reporter


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two real runs that differ in the learning rate, and tests of both."""
    folder = tmp_path_factory.mktemp("report")
    tiny_run.make_images(folder)
    for name, rate in (("high", 2e-3), ("low", 1e-3)):
        content = tiny_run.options(folder, total_iter=12)
        content |= {"name": name, "train": {**content["train"], "total_iter": 12}}
        content["train"]["optim_g"]["lr"] = rate
        content["val"] |= {"save_img": name == "high"}
        content["logger"] |= {"use_tb_logger": True}
        assert tiny_run.finish(tiny_run.write_options(folder, content, f"{name}.yml")) == 0
        test = {key: content[key] for key in ("name", "model_type", "scale", "num_gpu", "network_g")}
        test["datasets"] = {"test_1": content["datasets"]["val"]}
        test["path"] = {
            "pretrain_network_g": str(folder / f"experiments/{name}/models/net_g_latest.pth"),
            "results_root": str(folder / "results"),
        }
        test["val"] = {"metrics": content["val"]["metrics"], "save_img": True}
        assert main(["test", "-opt", str(tiny_run.write_options(folder, test, f"test_{name}.yml"))]) == 0
    return folder


class Parts(HTMLParser):
    """What a page refers to, its scripts, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.policy = ""
        self.json: list[Any] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self._in_json = self._in_code = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.references += [given[name] or "" for name in ("src", "href", "action", "data", "srcset") if name in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        self._in_json = given.get("type") == "application/json"
        self._in_code = tag in ("script", "style")
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._in_json = self._in_code = False

    def handle_data(self, data: str) -> None:
        if self._in_json:
            self.json.append(json.loads(data))
        elif not self._in_code:
            self.text.append(data)

    @property
    def charts(self) -> dict[str, Any]:
        return {data["title"]: data for data in self.json if isinstance(data, dict) and "curves" in data}

    @property
    def comparisons(self) -> dict[str, Any]:
        return {data["title"]: data for data in self.json if isinstance(data, dict) and "views" in data}


def report(*folders: Path, to: Path, arguments: tuple[str, ...] = ()) -> Parts:
    assert main(["report", *map(str, folders), "-o", str(to), *arguments]) == 0
    parts = Parts()
    parts.feed(to.read_text(encoding="utf-8"))
    assert parts.open == []
    return parts


def points(chart: dict[str, Any], series: int) -> dict[int, float]:
    curve = next(curve for curve in chart["curves"] if curve["series"] == series)
    return dict(zip(curve["x"], curve["y"], strict=True))


def test_charts_are_the_record(runs: Path, tmp_path: Path) -> None:
    parts = report(runs / "experiments/high", runs / "experiments/low", to=tmp_path / "report.html")
    assert json.loads(json.dumps(parts.json[-1])) == ["high", "low"]
    for series, name in enumerate(("high", "low")):
        lines = [json.loads(line) for line in (runs / f"experiments/{name}/record.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "lr" in line]
        assert len(steps) == 12
        for key, title in (("l_pix", "l_pix"), ("l_freq", "l_freq"), ("lr", "Learning rate")):
            assert points(parts.charts[title], series) == {line["iter"]: line[key] for line in steps}
        scores = {line["iter"]: line["psnr"] for line in lines if "set" in line}
        assert points(parts.charts["psnr, val"], series) == scores
        assert list(scores) == [6, 12]
        seconds = points(parts.charts["Seconds per iteration"], series)
        assert list(seconds) == [line["iter"] for line in steps]
        assert all(0 < value < 60 for value in seconds.values())


def test_nothing_is_requested_from_outside(runs: Path, tmp_path: Path) -> None:
    folders = [runs / "experiments/high", runs / "results/high"]
    parts = report(*folders, to=tmp_path / "report.html")
    assert "default-src 'none'" in parts.policy
    assert {reference[:1] for reference in parts.references} == {"#"}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'<]+", re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a request
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")


def test_options_that_differ_and_no_others(runs: Path, tmp_path: Path) -> None:
    parts = report(runs / "experiments/high", runs / "experiments/low", to=tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    section = html[html.index(">Options</h2>") : html.index("All options of high")]
    assert re.findall(r'<th scope="row" class="">(.*?)</th>', section) == ["train.optim_g.lr", "val.save_img"]
    assert re.findall(r'<td class="(.*?)">(.*?)</td>', section) == [
        *(("", "0.002"), ("differs", "0.001"), ("", "true"), ("differs", "false"))
    ]
    assert "torch" in parts.text


def test_validation_images_over_time_beside_lq_bicubic_and_gt(runs: Path, tmp_path: Path) -> None:
    parts = report(runs / "experiments/high", runs / "experiments/low", to=tmp_path / "report.html")
    embedded = next(data for data in parts.json if isinstance(data, dict) and all(key[:1] == "i" for key in data))
    shown = parts.comparisons["val: photo5"]
    assert [view["label"] for view in shown["views"]] == ["LQ", "bicubic", "high", "low", "GT"]
    assert [step[0] for step in shown["views"][2]["steps"]] == [6, 12]
    assert [step[0] for step in shown["views"][3]["steps"]] == [6, 12]  # its first image, from TensorBoard's file
    assert shown["views"][2]["steps"][1][2].startswith("PSNR-Y ")
    kept = report_browser.pixels(embedded[shown["views"][4]["steps"][0][1]])
    original = read_rgb(runs / "val/hr/photo5.png")
    assert kept.shape == original.shape
    assert np.abs(kept.astype(int) - original).mean() < 3  # JPEG
    lq = report_browser.pixels(embedded[shown["views"][0]["steps"][0][1]])
    assert np.array_equal(lq, read_rgb(runs / "val/lr/photo5.png"))
    assert [view["label"] for view in parts.comparisons["val: photo6"]["views"]] == ["LQ", "bicubic", "high", "GT"]


def test_limits_are_said(runs: Path, tmp_path: Path) -> None:
    parts = report(runs / "experiments/high", to=tmp_path / "a.html", arguments=("--images", "1"))
    assert list(parts.comparisons) == ["val: photo5"]
    assert any("1 of 2 images are shown" in text for text in parts.text)
    parts = report(runs / "experiments/high", to=tmp_path / "b.html", arguments=("--size", "0.01"))
    assert any("left out because of the size limit" in text for text in parts.text)
    assert (tmp_path / "b.html").stat().st_size < 80_000
    assert spread(range(0, 1000, 10), 3) == [0, 500, 990]


def test_a_run_that_goes_on(runs: Path, tmp_path: Path) -> None:
    """A record and a log whose last lines are being written, an image that is incomplete, a damaged line."""
    folder = tmp_path / "going"
    shutil.copytree(runs / "experiments/high", folder)
    lines = (folder / "record.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "record.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:25])
    log = next(folder.glob("train_*.log"))
    log.write_bytes(log.read_bytes()[:-200])
    image = folder / "visualization/val/photo5_12.png"
    image.write_bytes(image.read_bytes()[:300])
    parts = report(folder, to=tmp_path / "report.html")
    assert list(points(parts.charts["l_pix"], 0)) == [1, 2, 3, 4, 5, 6]
    assert not any("damaged" in text for text in parts.text)
    assert [step[0] for step in parts.comparisons["val: photo5"]["views"][2]["steps"]] == [6]
    (folder / "record.jsonl").write_bytes(b"".join([*lines[:3], b'{"iter": 4, "ep\n', *lines[4:]]))
    parts = report(folder, to=tmp_path / "report.html")
    assert any("damaged and left out: 4." in text for text in parts.text)
    assert 4 not in points(parts.charts["l_pix"], 0)


def test_skipped_steps_name_their_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment(tmp_path / "run")
    experiment.root.mkdir()
    speaks = {"start": 0, "validated": 0, "total": 10, "speaks": True}
    reporter = Reporter(experiment, **speaks)  # type: ignore[arg-type]
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)
    for iteration in (1, 2, 3):
        reporter.losses(iteration, 0, 1e-3, {"l_pix": float("nan") if iteration == 2 else 0.5}, 0.0)
        if iteration > 1:
            reporter.skipped(iteration, ["lq/<b>bad</b>.png", f"lq/{iteration}.png"])
    reporter.close()
    assert "iteration 2 is skipped" in caplog.text
    parts = report(experiment.root, to=tmp_path / "report.html")
    assert "lq/<b>bad</b>.png, lq/2.png" in parts.text
    assert parts.charts["l_pix"]["marks"] == [[0, 2], [0, 3]]
    assert points(parts.charts["l_pix"], 0) == {1: 0.5, 2: None, 3: 0.5}
    at = parts.text.index("Samples in more than one skipped step")
    assert parts.text[at + 3 : at + 5] == ["lq/<b>bad</b>.png", "2"]


def test_names_cannot_end_a_script(runs: Path, tmp_path: Path) -> None:
    name = "a&<!--<script>&amp;' \u2028"
    shutil.copytree(runs / "experiments/high", tmp_path / name)
    assert report(tmp_path / name, to=tmp_path / "report.html").json[-1] == [name]


def test_runs_of_the_same_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        shutil.copytree(runs / "experiments/low", tmp_path / place / "low")
    parts = report(tmp_path / "one/low", tmp_path / "two/low", to=tmp_path / "report.html")
    assert [Path(name) for name in parts.json[-1]] == [Path("one/low"), Path("two/low")]


def basicsrs_run(folder: Path) -> Path:
    """A folder as BasicSR leaves it, with the log that BasicSR's own classes write."""
    from basicsr.models.sr_model import SRModel
    from basicsr.utils import MessageLogger, get_root_logger

    root = folder / "experiments" / "theirs"
    root.mkdir(parents=True)
    logging.getLogger("basicsr").handlers.clear()
    from basicsr.utils import logger as module

    module.initialized_logger.clear()
    get_root_logger("basicsr", log_file=str(root / "train_theirs_20240101_000000.log"))
    options = {"name": "theirs", "logger": {"print_freq": 1, "use_tb_logger": False}, "train": {"total_iter": 20000}}
    message = MessageLogger(options, start_iter=1)
    for iteration in (1000, 2000):
        values = {"epoch": 0, "iter": iteration, "lrs": [2e-4], "time": 0.25, "data_time": 0.05}
        message({**values, "l_pix": 1 / iteration, "l_freq": 0.123})
        model = SimpleNamespace(
            metric_results={"psnr": 20 + iteration / 1000, "ssim": 0.5},
            best_metric_results={"Set5": {"psnr": {"val": 22, "iter": 2000}, "ssim": {"val": 0.5, "iter": 1000}}},
        )
        SRModel._log_validation_metric_values(model, iteration, "Set5", None)
    logging.getLogger("basicsr").handlers.clear()
    for iteration in (1000, 2000):
        write_image(
            root / f"visualization/babyx4/babyx4_{iteration}.png", np.full((40, 40, 3), iteration // 10 % 256, np.uint8)
        )
    (root / "train.yml").write_text(
        "name: theirs\nscale: 4\ndatasets:\n  val: {name: Set5, type: PairedImageDataset}\n"
    )
    return root


def test_a_run_of_basicsr(tmp_path: Path) -> None:
    root = basicsrs_run(tmp_path)
    run = read_run(root)
    assert run.losses == {"l_pix": [(1000, 1e-3), (2000, 5e-4)], "l_freq": [(1000, 0.123), (2000, 0.123)]}
    assert run.learning_rate == [(1000, 2e-4), (2000, 2e-4)]
    assert run.scores == {"Set5": {"psnr": [(1000, 21.0), (2000, 22.0)], "ssim": [(1000, 0.5), (2000, 0.5)]}}
    assert run.seconds == [(1000, 0.25), (2000, 0.25)]
    assert run.waiting == [(1000, 0.2), (2000, 0.2)]
    parts = report(root, to=tmp_path / "report.html")
    shown = parts.comparisons["Set5: babyx4"]
    assert [[step[0] for step in view["steps"]] for view in shown["views"]] == [[1000, 2000]]  # one, not compared
    assert shown["before"] == shown["after"] == 0
    assert any("without LQ, bicubic and GT" in text for text in parts.text)


def test_without_a_record_the_log_and_then_tensorboard_tell_the_same(runs: Path, tmp_path: Path) -> None:
    """The log rounds to five digits, TensorBoard's file to float32."""
    expected = read_run(runs / "experiments/high")
    folder = tmp_path / "copy"
    shutil.copytree(runs / "experiments/high", folder)
    (folder / "record.jsonl").unlink()
    for tolerance in (1e-4, 1e-6):  # the log; then, without it, TensorBoard's file
        found = read_run(folder)
        assert set(found.losses) == set(expected.losses)
        for name, values in expected.losses.items():
            assert dict(found.losses[name]) == pytest.approx(dict(values), rel=tolerance)
        expected_scores, scores = (dict(run.scores["val"]["psnr"]) for run in (expected, found))
        assert scores == pytest.approx(expected_scores, rel=tolerance)
        assert dict(found.learning_rate) == pytest.approx(dict(expected.learning_rate), rel=1e-3)
        for log in folder.glob("train_*.log"):
            log.unlink()


def test_a_resumed_run_counts_the_later_lines(tmp_path: Path) -> None:
    line = "2026-01-01 00:00:00 INFO: epoch 0  iter {}  lr 1.000e-03  {} it/s  data 3%  eta 00:00  l_pix {}\n"
    log = tmp_path / "train_a.log"
    log.write_text(
        line.format(1, "2.00", "5.0e-01") + line.format(2, "2.00", "4.0e-01") + line.format(2, "4.00", "3.0e-01")
    )
    content = read_logs([log])
    assert content.losses == {1: {"l_pix": 0.5}, 2: {"l_pix": 0.3}}
    assert content.seconds == {1: 0.5, 2: 0.25}


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["experiments/hihg"], ["there is no such folder", "Did you mean 'high'?"]),
        (["experiments"], ["neither a training run", "nor a test", "high", "low"]),
        (["val"], ["neither a training run (no record.jsonl, no train_*.log, no tb_logger)"]),
        (["experiments/high/record.jsonl"], ["is a file"]),
        (["experiments/high", "experiments/../experiments/high"], ["given twice"]),
    ],
)
def test_what_is_no_run_is_said(
    folders: list[str], words: list[str], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.html"
    assert main(["report", *(str(runs / folder) for folder in folders), "-o", str(target)]) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == []
    assert not target.exists()


def test_other_mistakes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs / "experiments/high")
    assert main(["report", run, "-o", str(tmp_path / "net.pth")]) == 2
    assert "ends in .html" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "train_new.log").write_text("2026-01-01 00:00:00 INFO: python: 3.11\n")
    assert main(["report", str(tmp_path / "new"), "-o", str(tmp_path / "r.html")]) == 2
    assert "no loss and no validation yet" in capsys.readouterr().err
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "metrics.json").write_text('{"sets": {')
    assert main(["report", str(tmp_path / "test"), "-o", str(tmp_path / "r.html")]) == 2
    assert "metrics.json is damaged" in capsys.readouterr().err


def test_tests_list_images_worst_first(runs: Path, tmp_path: Path) -> None:
    parts = report(runs / "results/low", runs / "results/high", to=tmp_path / "report.html")
    scores = {
        name: json.loads((runs / f"results/{name}/metrics.json").read_text())["sets"]["val"] for name in ("low", "high")
    }
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    section = html[html.index(">val</h2>") : html.index("<figure")]
    rows = re.findall(r'<th scope="row" class="">(.*?)</th>((?:<td.*?</td>)+)', section)
    images = scores["low"]["per_image"]
    assert [row[0] for row in rows] == sorted(images, key=lambda image: images[image]["psnr"])
    for image, cells in rows:
        values = [float(value) for value in re.findall(r'data-value="(.*?)"', cells)]
        assert values == [scores[name]["per_image"][image]["psnr"] for name in ("low", "high")]
        best = re.findall(r'class="number (best)?"', cells)
        assert best.index("best") == int(values[1] > values[0])
    shown = parts.comparisons[rows[0][0]]
    labels = ["LQ", "bicubic", "low", "high", "GT", "error of low", "error of high"]
    assert [view["label"] for view in shown["views"]] == labels


def test_error_maps_show_differences() -> None:
    gt = np.full((4, 4, 3), 100, np.uint8)
    image = gt.copy()
    image[1, 2] += ERROR_RANGE
    image[3, 3] += ERROR_RANGE + 60
    shown = error_map(image, gt)
    bright = cv2.applyColorMap(np.array([[0, 255]], np.uint8), cv2.COLORMAP_INFERNO)[0, :, ::-1]
    assert np.array_equal(shown[0, 0], bright[0])
    assert np.array_equal(shown[1, 2], bright[1])
    assert np.array_equal(shown[3, 3], bright[1])


def paper(folder: Path, *arguments: str) -> int:
    return main(["report", *arguments, "-o", str(folder / "r.html"), "--paper", str(folder / "paper")])


def test_figures_and_tables_of_tests(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tests = [str(runs / f"results/{name}") for name in ("low", "high")]
    assert paper(tmp_path, *tests, "--image", "photo6", "--box", "10,12,20,16") == 0
    scores = {
        name: json.loads((runs / f"results/{name}/metrics.json").read_text())["sets"]["val"] for name in ("low", "high")
    }
    rows = list(csv.reader((tmp_path / "paper/images.csv").read_text().splitlines()))
    assert rows[0] == ["set", "image", "psnr, low", "psnr, high"]
    for _, image, low, high in rows[1:]:
        assert [float(low), float(high)] == [scores[name]["per_image"][image]["psnr"] for name in ("low", "high")]
    rows = list(csv.reader((tmp_path / "paper/tests.csv").read_text().splitlines()))
    assert [row[:2] for row in rows[1:]] == [[name, f"{scores[name]['mean']['psnr']:.3f}"] for name in ("low", "high")]
    assert r"\toprule" in (tmp_path / "paper/tests.tex").read_text()
    gt, outputs = read_rgb(runs / "val/hr/photo6.png"), []
    for name in ("low", "high"):
        outputs.append(read_rgb(runs / f"results/{name}/visualization/val/photo6_{name}.png"))
    enlarged = np.repeat(np.repeat(gt[12:28, 10:30], 10, axis=0), 10, axis=1)  # as the grid shows the box
    picture = read_rgb(tmp_path / "paper/crops.png")
    assert found_in(picture, enlarged)
    for output in outputs:
        assert found_in(picture, np.repeat(np.repeat(output[12:28, 10:30], 10, axis=0), 10, axis=1))
    assert "val/photo6, --box 10,12,20,16" in capsys.readouterr().out
    assert (tmp_path / "paper/crops.pdf").read_bytes().startswith(b"%PDF")


def found_in(picture: np.ndarray, part: np.ndarray) -> bool:
    height, width = part.shape[:2]
    places = np.argwhere((picture[: -height + 1, : -width + 1] == part[0, 0]).all(axis=-1))
    return any(np.array_equal(picture[y : y + height, x : x + width], part) for y, x in places)


def test_figures_and_tables_of_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(runs / "experiments/high"), str(runs / "experiments/low")]
    assert paper(tmp_path, *folders) == 0
    content = (tmp_path / "paper/curves.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Subtype /Image" not in content  # lines, not pixels
    header, *rows = csv.reader((tmp_path / "paper/runs.csv").read_text().splitlines())
    assert header[:3] == ["run", "iterations", "psnr, val"]
    for row in rows:
        points = dict(read_run(runs / "experiments" / row[0]).scores["val"]["psnr"])
        assert (float(row[2]), int(row[3])) == (round(max(points.values()), 3), max(points, key=lambda i: points[i]))
    assert "crops.png: val/photo5" in capsys.readouterr().out
    for arguments, words in (
        (["--image", "phto5"], "Did you mean 'photo5'?"),
        (["--box", "60,60,20,20"], "is not inside the image of 64x64"),
        (["--box", "a"], "write x,y,w,h in pixels"),
    ):
        assert paper(tmp_path, *folders, *arguments) == 2
        assert words in capsys.readouterr().err
    assert main(["report", *folders, "--box", "1,1,9,9", "-o", str(tmp_path / "r.html")]) == 2
    assert "--box and --image belong to --paper" in capsys.readouterr().err


@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_in_the_browser(runs: Path, tmp_path: Path) -> None:
    """Charts, hover values, hidden runs, slider, iterations, linked zoom and sorting, as a visitor uses them."""
    folders = [str(runs / part) for part in ("experiments/high", "experiments/low", "results/high")]
    assert main(["report", *folders, "-o", str(tmp_path / "report.html")]) == 0
    told = report_browser.visit(tmp_path, "report.html")
    record = [json.loads(line) for line in (runs / "experiments/high/record.jsonl").read_text().splitlines()]
    assert told["errors"] == []
    assert told["requests"] == []
    assert told["curves"] == [2, 1]  # drawn lines of l_pix: of both runs; of one after the other is hidden
    third = [line for line in record if "lr" in line][2]["l_pix"]
    assert told["hover"].startswith("Iteration 3high")
    assert float(re.findall(r"high([\d.e-]+)", told["hover"])[0]) == pytest.approx(third, rel=1e-4)
    assert told["split"] == ["50%", "25%", "inset(0px 0px 0px 25%)"]
    assert told["zoomed"] == [1, 1.5, 1]
    assert len(told["transforms"]) == 1  # the stage and all panes show the same part
    assert told["steps"] == ["12", "6"]
    assert told["changed"] is True
    assert told["sorted"] == sorted(told["sorted"], reverse=True)
    assert told["overflow"] == [0, 0]
    assert told["theme"] == ["", "light", "dark", ""]
    assert told["smoothing"][0] != told["smoothing"][1]
