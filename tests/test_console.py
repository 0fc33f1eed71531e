"""What reaches the terminal: nothing in a name may be obeyed by it, or look like a message of its own."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from safmn import cli
from safmn.errors import DataError, exit_status
from safmn.imaging import write_image
from safmn.system import console
from safmn.training.experiment import start_logging

EVIL = "a\x1b[2J\r\u202eb\x9b\u2066c\x7f"
ESCAPED = "a\\x1b[2J\\r\\u202eb\\x9b\\u2066c\\x7f"
FORGED = "x\nsafmn: error: forged"
Capture = pytest.CaptureFixture[str]


def obeyed(text: str) -> list[str]:
    """The characters that a terminal would obey."""
    return [c for c in text if c not in "\n\t" and (not c.isprintable() or "\ud800" <= c <= "\udfff")]


def test_what_a_terminal_obeys_is_escaped_and_nothing_else() -> None:
    assert console.printable(EVIL) == ESCAPED
    assert console.printable("Grüße, 写真, שלום, 😀\n\tend") == "Grüße, 写真, שלום, 😀\n\tend"
    assert console.printable("\udcff\ud800") == "\\udcff\\ud800"
    assert console.one_line("a\nb\tc") == "a\\nb\\tc"
    assert console.message("lists:\n  one\n  two") == "lists:\n  one\n  two"
    assert console.message("options:\na: 1\nb:\n  c: 2") == "options:\n  a: 1\n  b:\n    c: 2"


def test_errors_logs_lines_and_tables(tmp_path: Path, capfd: Capture) -> None:
    @exit_status
    def run() -> int:
        logging.getLogger("safmn").warning("before: %s", EVIL)
        start_logging(tmp_path / "run.log", is_main=True)
        logging.getLogger("safmn.x").warning("cannot read %s", Path(EVIL + FORGED))
        console.say(console.table([EVIL], [[FORGED]]))
        console.say_line(EVIL + FORGED)
        raise DataError(f"cannot read {EVIL}{FORGED}\udcff")

    root = logging.getLogger("safmn")
    before = root.handlers[:], root.level, root.propagate
    try:
        assert run() == 2
    finally:
        for handler in root.handlers[:]:
            handler.close()
        root.handlers[:], root.level, root.propagate = before
    out, err = capfd.readouterr()
    for text in (out, err, (tmp_path / "run.log").read_text()):
        assert obeyed(text) == []
        assert ESCAPED in text
        assert not any(line.startswith("safmn: error: forged") for line in text.splitlines())
    assert err.splitlines()[-2].startswith("safmn: error: cannot read")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are anything but / and NUL there alone")
def test_commands_escape_the_names_of_files(tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "in"
    write_image(folder / "x.png", np.zeros((8, 8, 3), np.uint8))
    os.rename(folder / "x.png", folder / f"{EVIL}\nz.png")
    (folder / f"{EVIL}.jpg").write_bytes(b"no image")
    (folder / f"{EVIL}.txt").touch()
    assert cli.main(["upscale", str(folder), "-o", str(tmp_path / "out"), "--weights", "safmn-x2"]) == 1
    assert cli.main(["prepare", "meta", str(folder), "-o", f"{tmp_path}/{EVIL}.txt"]) in (0, 2)
    assert cli.main(["train", "-opt", f"{tmp_path}/{EVIL}.yml"]) == 2
    assert cli.main([EVIL]) == 2
    with pytest.raises(SystemExit):
        cli.main(["zoo", EVIL])
    out, err = capfd.readouterr()
    assert obeyed(out + err) == []
    assert out.count(ESCAPED) >= 3
    assert f"{ESCAPED}\\nz.png" in out
    assert err.count(ESCAPED) >= 2 or "\\x1b" in err
