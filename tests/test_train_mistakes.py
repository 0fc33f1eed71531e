"""Mistakes that are found only when a run is built give one message with file and key, and exit status 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run

from safmn.train import main


@pytest.mark.parametrize(
    ("section", "changes", "key", "words"),
    [
        ("path", {"resume_state": "nowhere/000000001"}, "path.resume_state: ", "nowhere/000000001"),
        ("path", {"resume_state": "nowhere/1.state"}, "path.resume_state: ", "nowhere/1.state"),
        ("network_g", {"dim": 7}, "network_g: dim is 7", "multiple of 4"),
    ],
)
def test_the_message_names_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, changes: dict[str, Any], key: str, words: str
) -> None:
    tiny_run.make_images(tmp_path)
    content = tiny_run.options(tmp_path)
    content[section] |= changes
    option_file = tiny_run.write_options(tmp_path, content)
    assert main(["-opt", str(option_file)]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("safmn: error: ")]
    assert message.startswith(f"safmn: error: {option_file}: {key}")
    assert words in message
