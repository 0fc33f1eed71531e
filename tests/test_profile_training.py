"""scripts/benchmarks/profile_training.py on a small run."""

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
    assert "iterations a second, data included" in output
    assert output.count("\n| ") == 5  # the table's head and two rows, and all of them together
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written where the run would write
