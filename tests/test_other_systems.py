"""The commands on Windows and macOS, simulated: Python on Linux without what these systems lack.

``other_system/sitecustomize.py`` says what is simulated. Which names a system lacks is read from typeshed's stubs of
the standard library, which come with mypy.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import mypy
import pytest
import tiny_run
from conftest import REPOSITORY

from safmn.kernels.cpu.build import can_load, load_for_this_machine
from safmn.kernels.cpu.compilation import SOURCES
from safmn.kernels.cpu.training import this_machine as widest_training_kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="simulates another system on Linux"),
]

PRELUDE = Path(__file__).parent / "other_system"
STUBS = Path(mypy.__file__).parent / "typeshed" / "stdlib"
# Modules of the standard library that are not the same everywhere, and that SAFMN might use.
MODULES = (
    *("errno", "fcntl", "grp", "locale", "mmap", "os", "pwd", "resource", "select", "shutil", "signal", "socket"),
    *("sys", "syslog", "termios", "time", "tty"),
)
SYSTEMS = ("win32", "darwin")


def names(module: str, system: str) -> set[str]:
    """The names that a module has on a system."""
    stub = next(path for path in (STUBS / f"{module}.pyi", STUBS / module / "__init__.pyi") if path.is_file())
    facts = {"sys": SimpleNamespace(platform=system, version_info=sys.version_info)}
    return set(_defined(ast.parse(stub.read_text(encoding="utf-8")).body, facts))


def _defined(body: list[ast.stmt], facts: dict[str, Any]) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.If):
            holds = eval(compile(ast.Expression(statement.test), "stub", "eval"), facts)
            yield from _defined(statement.body if holds else statement.orelse, facts)
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.ImportFrom):
            yield from (alias.name for alias in statement.names if alias.asname)  # the others are not of the module


@cache
def missing(system: str) -> dict[str, list[str] | None]:
    """The names that each module lacks on a system; None if there is no such module."""
    found = {}
    for module in MODULES:
        there, here = names(module, system), names(module, "linux")
        found[module] = sorted(here - there) if {name for name in there if name[0] != "_"} else None
    return found


def test_the_list_of_missing_names() -> None:
    windows, mac = missing("win32"), missing("darwin")
    absent = {name for name, lacks in windows.items() if lacks is None}
    assert absent == {"fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty"}
    assert {"fork", "getuid", "pread", "register_at_fork", "sched_getaffinity", "uname"} <= set(windows["os"] or ())
    assert {"SIGUSR1", "SIGHUP", "SIGQUIT", "pthread_sigmask", "sigtimedwait"} <= set(windows["signal"] or ())
    assert {"MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE"} <= set(windows["mmap"] or ())
    assert {"sched_getaffinity"} <= set(mac["os"] or ())
    assert "sigtimedwait" in (mac["signal"] or ())
    assert "fork" not in (mac["os"] or ())


class Machine:
    """A computer with another system: runs commands in a folder. It has the kernels compiled already."""

    def __init__(self, system: str, folder: Path) -> None:
        self.folder = folder
        self.cache = folder.parent / "cache"
        copy_kernels(self.cache / "native")
        self.report = folder.parent / f"{folder.name}-refused.txt"
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(PRELUDE), str(REPOSITORY), str(REPOSITORY / "tests")]),
            "PYTHONWARNDEFAULTENCODING": "1",
            "PYTHONUTF8": "0",
            "PYTHONIOENCODING": "cp1252" if system == "win32" else "utf-8",
            "OMP_NUM_THREADS": "1",
            "SAFMN_CACHE": str(self.cache),
            "SAFMN_TEST_SYSTEM": system,
            "SAFMN_TEST_FOLDER": str(folder),
            "SAFMN_TEST_ROOT": str(REPOSITORY),
            "SAFMN_TEST_MISSING": json.dumps(missing(system)),
            "SAFMN_TEST_REPORT": str(self.report),
        }

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run Python; return what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=self.environment, capture_output=True, timeout=600
        )
        said = (done.stdout + done.stderr).decode("cp1252", "replace")
        assert done.returncode == status, said
        return said

    def safmn(self, *arguments: str, status: int = 0) -> str:
        """Run a command in a process of its own."""
        return self.run("-m", "safmn", *arguments, status=status)

    def each(self, *commands: list[str]) -> str:
        """Run commands one after the other in one process, to save time; each must succeed."""
        code = (
            "import json, sys; from safmn.cli import main\n"
            "for command in json.loads(sys.argv[1]):\n"
            "    status = main(command)\n"
            "    assert status == 0, (command, status)\n"
        )
        return self.run("-c", code, json.dumps(commands))

    def refused(self) -> list[str]:
        """What the system refused, whether or not the command handled it.

        The lock file is left out: ``Lock`` tries to remove it while it is open, for the sake of Linux.
        """
        lines = self.report.read_text(encoding="utf-8").splitlines() if self.report.exists() else []
        return [line for line in lines if ".lock': the file is open" not in line]


def copy_kernels(folder: Path) -> None:
    """Put the kernels into a cache: compiling them takes longer than everything else here."""
    folder.mkdir(parents=True)
    if can_load():
        inference, training = SOURCES
        narrow = [(training, True)] if widest_training_kernels().lanes == 16 else []  # for small batches
        for source, is_narrow in [(inference, False), (training, False), *narrow]:
            shutil.copy(load_for_this_machine(source, Path, narrow=is_narrow), folder)


@pytest.fixture(params=SYSTEMS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    folder = tmp_path / "photos ä"
    folder.mkdir()
    return Machine(request.param, folder)


def test_the_code_of_safmn_sees_the_other_system(machine: Machine) -> None:
    """And only that code; and what is simulated does happen."""
    said = machine.run(
        "-c",
        "import os, sys, safmn, multiprocessing\n"
        "from safmn.system import files, memory, signals\n"
        "print(sys.platform, hasattr(os, 'getpid'), hasattr(os, 'sched_getaffinity'))\n"
        "print(files.sys.platform, hasattr(files.os, 'getpid'), hasattr(files.os, 'sched_getaffinity'))\n"
        "print(multiprocessing.get_start_method(), hasattr(signals.signal, 'sigtimedwait'))\n"
        "open('open.txt', 'w', encoding='utf-8').write('')\n"
        "with open('open.txt', encoding='utf-8'):\n"
        "    try: files.replace(files.Path('open.txt'), files.Path('other.txt')); print('renamed')\n"
        "    except PermissionError as error: print(error)\n",
    )
    system = machine.environment["SAFMN_TEST_SYSTEM"]
    lines = said.splitlines()
    assert lines[:3] == ["linux True True", f"{system} True False", "spawn False"], said
    assert ("another program has the file open" in lines[3]) == (system == "win32")


def test_kernels_are_compiled(machine: Machine) -> None:
    """The commands below find the real ones compiled."""
    if not can_load():
        pytest.skip("no C++ compiler")
    small = machine.folder / "small.cpp"
    small.write_text('extern "C" int answer() { return 42; }', encoding="utf-8")
    said = machine.run(
        "-c",
        "import ctypes, sys; from pathlib import Path\n"
        "from safmn.kernels.cpu.build import load_for_this_machine\n"
        "for _ in range(2):\n"
        "    print(load_for_this_machine(Path(sys.argv[1]), lambda path: ctypes.CDLL(str(path))).answer())\n",
        str(small),
    )
    assert said.split() == ["42", "42"]
    assert len(list((machine.cache / "native").glob("small-*.so"))) == 1
    assert machine.refused() == []


def test_the_commands_for_data_and_images(machine: Machine) -> None:
    images = machine.folder / "images"
    tiny_run.make_images(images)
    photo = machine.folder / "bild.png"
    assert cv2.imwrite(str(photo), cv2.imread(str(images / "val" / "hr" / "photo5.png")))
    hr, lr = "images/train/hr", "images/train/lr"
    machine.each(
        ["options"],
        ["options", "train_x4"],
        ["zoo"],
        ["prepare", "lr", "--hr", hr, "--scales", "2", "-o", "made"],
        ["prepare", "subimages", "--hr", hr, "-o", "sub", "--crop", "32", "--step", "32"],
        ["prepare", "meta", hr, "-o", "list.txt"],
        ["prepare", "lmdb", hr, "-o", "hr.lmdb"],
        ["prepare", "lmdb", hr, "-o", "hr.lmdb"],
        ["prepare", "store", "--hr", hr, "--lr", lr, "--scale", "2", "-o", "train.store"],
        ["prepare", "store", "--hr", hr, "--lr", lr, "--scale", "2", "-o", "train.store"],  # up to date
        ["prepare", "store", "--hr", hr, "--gt-only", "-o", "train.store"],  # replaced
        ["degrade", "bild.png", "-o", "bad.png", "--seed", "3"],
        ["upscale", "bild.png", "-o", "out", "--compare", "--device", "cpu"],
        ["upscale", "images/val", "-o", "out", "--device", "cpu", "--format", "jpg", "--backend", "eager"],
        ["export", "--weights", "safmn-x2", "-o", "net.onnx"],
    )
    assert cv2.imread(str(machine.folder / "out" / "bild.png")).shape == (128, 128, 3)
    assert cv2.imread(str(machine.folder / "out" / "lr" / "photo5.jpg")).shape == (64, 64, 3)
    assert machine.refused() == []


def test_training_and_testing(machine: Machine) -> None:
    images = machine.folder / "images"
    tiny_run.make_images(images)
    content = tiny_run.options(images, total_iter=6)
    content["datasets"]["train"]["num_worker_per_gpu"] = 1
    content["path"]["experiments_root"] = "runs"
    tiny_run.write_options(machine.folder, content)
    machine.run(str(REPOSITORY / "safmn" / "train.py"), "-opt", "options.yml")  # workers import a file as main module
    whole = losses(machine.folder / "runs" / "tiny")
    train = ["train", "-opt", "options.yml"]
    sets = ["--set", "Val=images/val/hr,images/val/lr", "--save_img"]
    test = ["test", "--weights", "runs/tiny/models/net_g_latest.pth", *sets, "--device", "cpu"]
    said = machine.each(
        [*train, "--force_yml", "train:total_iter=3", "sanity=false"],  # each trial starts a worker, too
        [*train, "--auto_resume", "--force_yml", "sanity=false"],
        test,
        test,  # sets the first one's results aside
    )
    assert "an older run of this name is kept as" in said
    assert re.search(r"resumed from .*iteration 3\b", said), said
    assert losses(machine.folder / "runs" / "tiny") == whole
    assert len(list((machine.folder / "results").iterdir())) == 2
    assert machine.refused() == []


def losses(run: Path) -> list[bytes]:
    """The lines of a run's record that are not of a validation."""
    return [line for line in (run / "record.jsonl").read_bytes().split(b"\n") if b'"l_pix"' in line]
