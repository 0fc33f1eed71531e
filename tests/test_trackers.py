"""Where curves go besides the record: TensorBoard's HParams, Weights & Biases, MLflow, also after a resume."""

from __future__ import annotations

import importlib.util
import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run

from safmn.errors import OptionError
from safmn.options import load_options
from safmn.training import trackers
from safmn.training.experiment import Experiment
from safmn.training.reporter import Reporter

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("wandb", "mlflow")
}


def options(folder: Path, logger: dict[str, Any], total: int = 12) -> Path:
    content = tiny_run.options(folder)
    content["train"] |= {"total_iter": total}
    content["logger"] |= logger
    return tiny_run.write_options(folder, content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_run.make_images(tmp_path)
    return tmp_path


def expected(folder: Path) -> dict[str, dict[int, float]]:
    """The curves of the record, with TensorBoard's tags."""
    curves: dict[str, dict[int, float]] = {}
    for line in tiny_run.record(folder):
        iteration = line.pop("iter")
        prefix = f"metrics/{line.pop('set')}/" if "set" in line else "losses/"
        line.pop("epoch", None)
        if "lr" in line:
            curves.setdefault("learning_rate", {})[iteration] = line.pop("lr")
        for name, value in line.items():
            curves.setdefault(prefix + name, {})[iteration] = value
    return curves


def test_options_and_metrics_reach_hparams(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    assert tiny_run.finish(options(folder, {"use_tb_logger": True}, total=6)) == 0
    assert tiny_run.finish(options(folder, {"use_tb_logger": True}), "--auto_resume") == 0
    events = EventAccumulator(str(folder / "experiments/tiny/tb_logger"))
    events.Reload()
    content = {tag: events.SummaryMetadata(tag).plugin_data.content for tag in events.PluginTagToContent("hparams")}
    begin = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert begin.hparams["train.optim_g.lr"].number_value == 1e-3
    assert begin.hparams["network_g.type"].string_value == "SAFMN"
    assert begin.hparams["datasets.train.use_hflip"].number_value == 1
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert [info.name.tag for info in experiment.metric_infos] == ["metrics/val/psnr"]
    assert metadata.SESSION_END_INFO_TAG in content
    for tag, curve in expected(folder).items():
        assert {event.step: event.value for event in events.Scalars(tag)} == pytest.approx(curve, rel=1e-6)


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which has blocks of 32 KiB, after a header of 7 bytes."""
    place, record = 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


@needs["wandb"]
def test_weights_and_biases_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = {"wandb": {"project": "mine"}}
    assert tiny_run.finish(options(folder, logger, total=6)) == 0
    assert tiny_run.finish(options(folder, logger), "--auto_resume") == 0
    files = sorted((folder / "experiments/tiny/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    found: dict[str, dict[int, float]] = {}
    runs = []
    for file in files:
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                runs.append(record.run)
            step = record.history.step.num
            for item in record.history.item:
                name = "/".join(item.nested_key) or item.key
                found.setdefault(name, {})[step] = json.loads(item.value_json)
    assert {(run.project, run.display_name, run.run_id) for run in runs} == {("mine", "tiny", runs[0].run_id)}
    configuration = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert configuration["train"]["optim_g"]["lr"] == 1e-3
    for tag, curve in expected(folder).items():
        assert found[tag] == pytest.approx(curve)
    assert "images/val/path" in found, sorted(found)


@needs["mlflow"]
def test_mlflow_goes_on_in_the_same_curves(folder: Path) -> None:
    from mlflow import MlflowClient

    address = f"sqlite:///{folder / 'mlflow.db'}"
    logger = {"mlflow": {"experiment": "mine", "tracking_uri": address}}
    client = MlflowClient(tracking_uri=address)
    client.create_experiment("mine", artifact_location=(folder / "artifacts").as_uri())
    assert tiny_run.finish(options(folder, logger, total=8)) == 0
    states = folder / "experiments/tiny/training_states"
    for newer in ("000000006", "000000008"):  # as after a kill: the last points were sent, but not saved
        for file in (states / newer).iterdir():
            file.unlink()
        (states / newer).rmdir()
    assert tiny_run.finish(options(folder, logger), "--auto_resume") == 0
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert client.list_artifacts(run.info.run_id, "images")
    assert run.data.params["train.optim_g.lr"] == "0.001"
    curves = expected(folder)
    assert max(curves["losses/l_pix"]) == 12
    for tag, curve in curves.items():
        points = client.get_metric_history(run.info.run_id, tag)
        steps = [point.step for point in points if point.step in curve]
        assert sorted(steps) == sorted(set(steps))
        assert {point.step: point.value for point in points if point.step in curve} == pytest.approx(curve)


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Broken:
        name = "Broken"

        def scalar(self, tag: str, value: float, iteration: int) -> None:
            calls.append(iteration)
            raise ConnectionError("the server is gone")

        def image(self, tag: str, image: np.ndarray, iteration: int) -> None:
            raise AssertionError

        def close(self, *, finished: bool) -> None:
            raise AssertionError

    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)
    experiment = Experiment(tmp_path / "run")
    experiment.root.mkdir()
    guarded = trackers._Forgiving(Broken())
    reporter = Reporter(experiment, start=0, validated=0, total=2, speaks=True, trackers=[guarded])
    for iteration in (1, 2):
        reporter.losses(iteration, 0, 1e-3, {"l_pix": 0.5}, 0.0)
        reporter.step()
    reporter.close()
    assert calls == [1]
    said = {id(record) for record in caplog.records if "Broken failed and gets nothing more" in record.getMessage()}
    assert len(said) == 1
    assert len(experiment.record.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"wandb": {"project": "mine"}}, "logger.wandb.project: needs the package wandb: pip install wandb"),
        ({"mlflow": {"experiment": "mine"}}, "logger.mlflow.experiment: needs the package mlflow: pip install mlflow"),
    ],
)
def test_a_missing_package_is_said_before_the_run(
    section: dict[str, Any], key: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    absent = ("wandb", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name, *rest))
    path = options(folder, section)
    with pytest.raises(OptionError, match=key):
        load_options(path, mode="train")
    content = path.read_text().replace("val:\n    name", "test_1:\n    name")
    path.write_text(content)
    load_options(path, mode="test")  # a test sends nothing


def test_debug_runs_are_not_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safmn.options.rules.importlib.util.find_spec", lambda name, *rest: object())
    path = options(folder, {"wandb": {"project": "mine"}, "mlflow": {"experiment": "mine"}})
    monkeypatch.setattr(trackers, "_open", lambda module, *rest: type("Opened", (), {"name": module})())
    loaded = {debug: load_options(path, mode="train", debug=debug) for debug in (False, True)}
    opened = {debug: trackers.open_trackers(each, folder, start=0) for debug, each in loaded.items()}
    assert [tracker.name for tracker in opened[False]] == ["wandb", "mlflow"]
    assert opened[True] == []
