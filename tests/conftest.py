"""Shared fixtures. Tests that need real data (benchmarks, weights, golden outputs) are skipped if it is missing."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from hypothesis import settings

import safmn  # noqa: F401 - makes `import basicsr` work, which test files do before they import safmn

if not torch.cuda.is_available():  # before Triton's first import, which torch does for any test that compiles
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples each time, unless SAFMN_TEST_RANDOM=1. No time limits: the machine may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None)
if not os.environ.get("SAFMN_TEST_RANDOM"):
    settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SAFMN_SHARED", REPOSITORY.parent / "shared")) / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--start-method",
        choices=("spawn", "forkserver"),
        help="start all worker processes in this way instead of the system's own",
    )
    parser.addoption("--all-commands", action="store_true", help="run every command in README and docs: minutes")


def pytest_configure(config: pytest.Config) -> None:
    """Set the start method, here and in the processes that tests start."""
    method = config.getoption("--start-method")
    if method:
        multiprocessing.set_start_method(method, force=True)
        multiprocessing.set_forkserver_preload(["safmn.data.loading"])  # as safmn/train.py does
        path = [str(REPOSITORY / "tests" / "start_method"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ |= {"SAFMN_TEST_START_METHOD": method, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that fork on purpose where nothing may fork."""
    method = config.getoption("--start-method")
    reason = f"forks on purpose, --start-method is {method}" if method else "forks on purpose, which this system cannot"
    if method or not hasattr(os, "fork"):
        for item in items:
            if item.get_closest_marker("forks"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _fork_on_purpose(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fork in tests that are marked so: Python 3.14 starts processes from a fork server by default."""
    if not request.node.get_closest_marker("forks"):
        yield
        return
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("fork", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def _shared(part: str) -> Path:
    folder = SHARED / part
    if not folder.is_dir():
        pytest.skip(f"no shared test data at {folder} (set SAFMN_SHARED to the folder that holds data/)")
    return folder


@pytest.fixture(autouse=True)
def levels_as_before() -> Iterator[None]:
    """Commands set the levels of loggers for their process, which in tests is that of all."""
    loggers = [logging.getLogger(name) for name in ("safmn.weights", "safmn.backend")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts without the choices of "auto" and the scores of other tests and of the user, and leaves none."""
    folder = tmp_path_factory.getbasetemp() / "remembered" / secrets.token_hex(8)
    monkeypatch.setattr("safmn.inference.backends.remembered.cache_folder", lambda: folder)
    monkeypatch.setattr("safmn.evaluation.kept_lines.cache_folder", lambda: folder)


@pytest.fixture(scope="session")
def benchmark_dir() -> Path:
    """Set5 and Set14: ``<Set>/HR/*.png`` and ``<Set>/LR_bicubic/X{2,3,4}/*x{2,3,4}.png``."""
    return _shared("benchmark")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Published weights of the SAFMN family, and those of challenges."""
    return _shared("weights")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Outputs of the reference implementations; ``manifest.json`` describes how to rebuild weights and inputs."""
    return _shared("golden")


@pytest.fixture(scope="session")
def photos_dir() -> Path:
    """Photographs: ``train`` (512x512 patches) and ``val``."""
    return _shared("photos")


@pytest.fixture(scope="session")
def cases_dir() -> Path:
    """Small images and films that were once upscaled wrongly."""
    return _shared("cases")


@pytest.fixture
def locked_elsewhere() -> Callable[[Path], AbstractContextManager[Any]]:
    """A context manager in which another process has the lock of a file."""
    code = (
        "import pathlib, sys; from safmn.system.locks import ProcessLock; "
        "lock = ProcessLock(pathlib.Path(sys.argv[1])); "
        "assert lock.take(); print(flush=True); sys.stdin.read()"
    )

    @contextlib.contextmanager
    def locked(path: Path) -> Iterator[None]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as process:  # type: ignore[call-overload]
            process.stdout.readline()
            yield
            process.stdin.close()

    return locked


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs for a tiny training run: ``{train,val}/{hr,lr}/*.png``, x2."""
    folder = tmp_path_factory.mktemp("images")
    tiny_run.make_images(folder)
    return folder
