"""Terminal output: no name may contain characters that a terminal executes, or look like a separate message."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import subprocess
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


def executed(text: str) -> list[str]:
    """Return the characters that a terminal would execute."""
    return [c for c in text if c not in "\n\t" and (not c.isprintable() or "\ud800" <= c <= "\udfff")]


def test_only_characters_that_a_terminal_executes_are_escaped() -> None:
    assert console.printable(EVIL) == ESCAPED
    assert console.printable("Grüße, 写真, שלום, 😀\n\tend") == "Grüße, 写真, שלום, 😀\n\tend"
    assert console.printable("\udcff\ud800") == "\\udcff\\ud800"
    assert console.one_line("a\nb\tc") == "a\\nb\\tc"
    assert console.message("lists:\n  one\n  two") == "lists:\n  one\n  two"
    assert console.message("options:\na: 1\nb:\n  c: 2") == "options:\n  a: 1\n  b:\n    c: 2"


def test_errors_logs_lines_and_tables_are_escaped(tmp_path: Path, capfd: Capture) -> None:
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
        assert executed(text) == []
        assert ESCAPED in text
        assert not any(line.startswith("safmn: error: forged") for line in text.splitlines())
    assert err.splitlines()[-2].startswith("safmn: error: cannot read")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows any byte but / and NUL in a file name")
def test_commands_escape_file_names(tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "in"
    write_image(folder / "x.png", np.zeros((8, 8, 3), np.uint8))
    os.rename(folder / "x.png", folder / f"{EVIL}\nz.png")
    (folder / f"{EVIL}.jpg").write_bytes(b"no image")
    (folder / f"{EVIL}.txt").touch()
    assert cli.main(["upscale", str(folder), "-o", str(tmp_path / "out"), "--weights", "safmn-x2"]) == 1
    assert cli.main(["prepare", "meta", str(folder), "-o", f"{tmp_path}/{EVIL}.txt"]) == 2
    assert cli.main(["train", "-opt", f"{tmp_path}/{EVIL}.yml"]) == 2
    assert cli.main([EVIL]) == 2
    with pytest.raises(SystemExit):
        cli.main(["zoo", EVIL])
    out, err = capfd.readouterr()
    assert executed(out + err) == []
    assert out.count(ESCAPED) >= 3
    assert f"{ESCAPED}\\nz.png" in out
    errors = [line for line in err.splitlines() if "error: " in line]
    assert len(errors) == 4
    assert all(ESCAPED in line for line in errors)


COMMANDS = """
import json, sys
from safmn.cli import VERBS, main
for verb in VERBS:
    try:
        main([verb, "--help"])
    except SystemExit as end:
        assert end.code == 0, verb
for command, status in json.loads(sys.argv[1]):
    assert main(command) == status, command
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},  # Windows, when the output is not a console
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # ASCII, also for names of files
    ],
    ids=["cp1252", "ascii"],
)
def test_commands_work_where_the_console_is_not_utf8(tmp_path: Path, environment: dict[str, str]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for folder in ("bilder", "hr", "lr"):
        (tmp_path / folder).mkdir()
    write_image(tmp_path / "bilder" / "Gr\u00fc\u00dfe \u5199\u771f.png", image)
    write_image(tmp_path / "hr" / "photo.png", np.kron(image, np.ones((2, 2, 1), np.uint8)))
    write_image(tmp_path / "lr" / "photo.png", image)
    commands = [
        (["options"], 0),
        (["zoo"], 0),
        (["upscale", "bilder", "-o", "out", "--device", "cpu", "--backend", "eager"], 0),
        (["upscale", "\u5199.png", "-o", "out"], 2),
        (["degrade", "hr/photo.png", "-o", "bad.png"], 0),
        (["prepare", "meta", "hr"], 0),
        (["train", "-opt", "\u5199.yml"], 2),
        (["test", "--weights", "safmn-x2", "--set", "\u5199=hr,lr", "--device", "cpu"], 0),
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
    )
    said = (done.stdout + done.stderr).decode(environment.get("PYTHONIOENCODING", "ascii"))
    assert done.returncode == 0, said
    assert "| \\u5199" in said  # the table
    assert "Gr\\udcc3" in said if "LC_ALL" in environment else "Gr\u00fc\u00dfe \\u5199\\u771f.png" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Gr\u00fc\u00dfe \u5199\u771f.png"]
    report = (tmp_path / "results" / "safmn-x2" / "metrics.md").read_text(encoding="utf-8")
    assert "| \u5199" in report


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="Windows has no pseudo-terminals")
def test_a_progress_bar_is_readable_on_a_terminal_that_is_not_utf8() -> None:
    code = "from safmn.prepare.parallel import progress; list(progress(range(3), 3, '\u5199'))"
    ours, theirs = os.openpty()
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # rows and columns
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment) as process:
        assert process.wait() == 0
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # Linux's end of file
        while part := os.read(ours, 10_000):
            said += part
    os.close(ours)
    assert "\\u5199: 100%|###" in said.decode("cp1252")
