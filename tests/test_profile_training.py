"""scripts/benchmarks/profile_training.py: it prints rate and operations, and writes no files of the run."""

from __future__ import annotations

from pathlib import Path

import profile_training
import pytest
import tiny_run


def test_rate_and_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run.make_images(tmp_path)
    option_file = tiny_run.write_options(tmp_path, tiny_run.options(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(
        "sys.argv", ["profile_training.py", "-opt", str(option_file), "--iterations", "3", "--rows", "2"]
    )
    assert profile_training.main() == 0
    output = capsys.readouterr().out
    assert "iterations a second" in output
    assert output.count("\n| ") == 5  # two header lines, the total, two operations
    assert sorted(tmp_path.rglob("*")) == before
