"""Mistakes that only show when a training run is put together: one message with file and key, exit status 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run

from safmn.train import main


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("path", {"resume_state": "nowhere/000000001"}, "path.resume_state: there is no file or folder nowhere/"),
        ("path", {"resume_state": "nowhere/1.state"}, "path.resume_state: there is no file or folder nowhere/1.state"),
        ("network_g", {"dim": 7}, "network_g: dim is 7; it must be a multiple of 4."),
    ],
)
def test_the_message_names_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, changes: dict[str, Any], message: str
) -> None:
    tiny_run.make_images(tmp_path)
    content = tiny_run.options(tmp_path)
    content[section] |= changes
    option_file = tiny_run.write_options(tmp_path, content)
    assert main(["-opt", str(option_file)]) == 2
    assert f"safmn: error: {option_file}: {message}" in capsys.readouterr().err
