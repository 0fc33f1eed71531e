"""A sweep trains every combination, resumes, and compares the runs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny_run
import yaml
from PIL import Image

from safmn.cli.sweep import main
from safmn.training import sweep
from safmn.training.experiment import Experiment
from safmn.training.sweep import _axis


@pytest.fixture
def option_file(tmp_path: Path) -> Path:
    tiny_run.make_images(tmp_path)
    data = tiny_run.options(tmp_path, total_iter=2, fft_opt=None)
    data["val"]["val_freq"] = 1
    (tmp_path / "run.yml").write_text(yaml.safe_dump(data))
    return tmp_path / "run.yml"


@pytest.mark.slow
def test_every_combination_is_trained_once(option_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-opt", str(option_file), "train.optim_g.lr=1e-3,5e-4", "network_g.dim=8", "--jobs", "2"]
    assert main(arguments) == 0
    folder = option_file.parent / "experiments"
    names = ["tiny_lr=0.001_dim=8", "tiny_lr=0.0005_dim=8"]
    records = {name: (folder / name / "record.jsonl").read_text() for name in names}
    assert len(set(records.values())) == 2
    table = (folder / "tiny_sweep/sweep.md").read_text()
    assert "train.optim_g.lr" in table
    assert len(table.strip().splitlines()) == 4
    with Image.open(folder / "tiny_sweep/sweep.png") as plot:
        assert len(set(plot.convert("RGB").getdata())) > 3
    assert table.strip() in capsys.readouterr().out
    assert main(arguments) == 0  # nothing is left to do
    assert {name: (folder / name / "record.jsonl").read_text() for name in names} == records
    assert not list(folder.glob("*archived*"))


def test_mistakes_are_found_before_training(option_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for values, message in (
        (["train.optim_g.lr"], "expected a key and values"),
        (["network_g.dim=8,wide"], "network_g.dim"),
        (["network_g.dmi=8"], "Did you mean 'dim'"),
        (["scale=2", "scale=4"], "given twice"),
    ):
        assert main(["-opt", str(option_file), *values]) == 2
        assert message in capsys.readouterr().err
    assert not (option_file.parent / "experiments").exists()


STAND_IN = """
import signal, sys, time
name = sys.argv[-1].partition("=")[2]
def save(*_):
    open(f"{name}.saved", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
if name.endswith("16") and "fails" in sys.argv[1]:
    sys.exit("safmn: error: this one fails\\nand more")
open(f"{name}.began", "w").close()
while not "fails" in sys.argv[1]:
    time.sleep(0.01)
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Let the sweep start a small program in place of training."""
    (folder / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sweep, "_TRAIN", (sys.executable, "-S", str(folder / "stand_in.py"), " ".join(words)))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes otherwise")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_runs(
    number: int, status: int, option_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sweep passes a signal on to the runs under way, waits for them, and starts no others."""
    folder = option_file.parent
    stand_in(folder, monkeypatch)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background processes ignore it

    def interrupt() -> None:
        while len(list(folder.glob("*.began"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert main(["-opt", str(option_file), "network_g.dim=8,12,16", "--jobs", "2"]) == status
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert sorted(path.name for path in folder.glob("*.saved")) == ["tiny_dim=12.saved", "tiny_dim=8.saved"]
    assert not (folder / "tiny_dim=16.began").exists()
    assert "the same command goes on" in capsys.readouterr().out


def test_a_run_that_fails_does_not_stop_the_others(
    option_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(option_file.parent, monkeypatch, "fails")
    assert main(["-opt", str(option_file), "network_g.dim=8,16,12"]) == 1
    assert {path.name for path in option_file.parent.glob("*.began")} == {"tiny_dim=8.began", "tiny_dim=12.began"}
    out = capsys.readouterr().out
    assert "failed: tiny_dim=16: this one fails; its output is in " in out
    assert out.count("exit status 1") == 2  # a line, and a cell of the table


def test_values_may_hold_commas_in_brackets() -> None:
    assert _axis("train:optim_g:betas=[0.9,0.99],[0.9,0.999]") == ("train.optim_g.betas", ["[0.9,0.99]", "[0.9,0.999]"])


def test_unknown_keys_are_mistakes_unless_the_user_is_tolerant(
    option_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)
    with option_file.open("a", encoding="utf-8") as file:
        file.write("unknown_key: 1\n")
    started: list[list[str]] = []
    monkeypatch.setattr(sweep, "_train", lambda file, run, *_: started.append(run.overrides) or 0)
    assert main(["-opt", str(option_file), "network_g.dim=8"]) == 2
    assert "unknown_key: unknown key" in capsys.readouterr().err
    assert main(["-opt", str(option_file), "network_g.dim=8", "--tolerant"]) == 0
    warned = {id(record) for record in caplog.records if "left out (tolerant)" in record.getMessage()}
    assert len(warned) == 1  # not once for each run
    assert started == [["network_g:dim=8", "name=tiny_dim=8", "tolerant=true"]]


def test_a_command_ends_with_the_process_that_started_it() -> None:
    """Its standard input is a pipe, which closes however that process ends."""
    program = "import sys, time; from safmn.system.guarded import end_with_starter as e; e(); print(1); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-uc", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "1\n"
    assert process.poll() is None
    process.stdin.close()
    process.stdout.close()
    assert process.wait(timeout=30) in (-signal.SIGTERM, signal.SIGTERM, 3)  # 3: Windows


def test_a_sweep_waits_for_a_run_that_another_process_trains(
    option_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sweep._run(str(option_file), "tiny", {"network_g.dim": "8"})
    other = Experiment.of(run.options)
    other.lock()
    waiting = threading.Thread(target=sweep._wait_until_free, args=(run, sweep._Trainings()))
    waiting.start()
    waiting.join(timeout=0.2)
    assert waiting.is_alive()
    other.unlock()
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert f"tiny_dim=8: waiting for process {os.getpid()} on " in capsys.readouterr().out
    assert other.in_use_by() is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_sweep_goes_on_without_losing_or_repeating_a_run(tmp_path: Path) -> None:
    """Its runs save and end although it was killed; the same command ends with the bytes of one that was not."""
    tiny_run.make_images(tmp_path)
    records, weights = [], []
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
        data = tiny_run.options(tmp_path, total_iter=60, fft_opt=None)
        data["path"]["experiments_root"] = str(tmp_path / folder)
        option_file = tiny_run.write_options(tmp_path / folder, data)
        command = [sys.executable, "-m", "safmn", "sweep", "-opt", str(option_file), "network_g.dim=8,12"]
        if folder == "killed":
            process = subprocess.Popen([*command, "--jobs", "2"])
            while len(list(tmp_path.glob("killed/tiny_*/training_states/0*"))) < 2:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
            process.wait()
        subprocess.run(command, check=True)
        records.append([(tmp_path / folder / f"tiny_dim={dim}/record.jsonl").read_text() for dim in (8, 12)])
        weights.append([(tmp_path / folder / f"tiny_dim={dim}/models/net_g_60.pth").read_bytes() for dim in (8, 12)])
        assert not list((tmp_path / folder).glob("*archived*"))
    assert records[0] == records[1]
    assert weights[0] == weights[1]
    assert "resumed from" in (tmp_path / "killed/tiny_sweep/tiny_dim=8.txt").read_text()
