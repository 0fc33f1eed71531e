"""Every command in README and docs is run, on small files, or a table says why not.

A test runs those that are quick. ``pytest --all-commands tests/test_documented_commands.py`` runs all.
"""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import document_world
import pytest
from documented import PAGES, Command, commands_of

from safmn import cli

ORDER = ("datasets/README.md", "README.md", "docs/start.md", "docs/training.md", "docs/components.md")
"""Pages whose commands make what others use; the other pages follow by name."""

ELSEWHERE = {
    # what is not run here: the reason
    r"docs/weights/.*: ": "days of training on photographs that are not part of the repository",
    r"docs/own_weights.md: ": "tests/test_site.py runs the page from beginning to end",
    r"docs/export.md: ": "tests/test_export.py runs the page's commands and programs",
    r"make (demo|test|setup)|pip |apt |npm |git ": "installs, or runs the demo or all tests: CI does, in a fresh clone",
    r"prepare download": "needs a network; tests/test_prepare_download.py has servers of its own",
    r"doctor --fix": "would change this environment; tests/test_doctor.py runs it in another",
    r"safmn app$": "serves until it is stopped; tests/test_app.py opens it in Chromium",
    r"serve_page": "serves until it is stopped; tests/test_browser_page.py does what it does",
    r"^docs/browser.md: cp ": "beside the commands above",
    r"export TORCH_|srun |sbatch |torchrun|SLURM": "needs several GPUs or nodes; see tests/test_distributed.py",
    r"--device cuda|benchmark_arm|compare_degradation|others_by_ncnn": "needs a GPU, QEMU, BasicSR's own code or ncnn",
    r"--before \.\./before": "needs a second checkout of the repository",
    r"train_real_gan_ldl_x4|train_real_gan_x4|train_real_x4.yml --auto|options/test_real_x4": (
        "a step of these networks takes minutes on a CPU; tests/test_real_models.py trains small ones"
    ),
    r"train -opt peers/": "needs the data of a published recipe; tests train the networks on other data",
    r"train_theirs.yml": "a file of another repository; tests/test_others.py has such files",
    r"docs/performance.md: python|guard.py|measure_upscaling|scripts/demo": "measures for minutes; has its own tests",
}
SHORTER = {
    # what is shortened: additional arguments, which mean the same for fewer iterations or images
    r"-opt options/test_x2": "--force_yml expect={} num_gpu=0",
    r"train -opt options/train_x4": (
        "--force_yml num_gpu=0 train:total_iter=2 datasets:train:batch_size_per_gpu=1 datasets:train:gt_size=64 "
        "datasets:train:num_worker_per_gpu=0 datasets:train:dataset_enlarge_ratio=1"
    ),
    r"train -opt demo_x4": "--force_yml train:total_iter=2 name=demo datasets:train:num_worker_per_gpu=0",
    r"bench speed": "--runs 2 --size 64x64",
}
SLOW = (
    r"safmn (bench|export|sweep|doctor|test|report|compare)|film|holiday|dv\.avi|--ensemble|peers|train -opt [od]|lmdb"
)
"""What takes about a second or more, and is run with ``--all-commands`` only."""


def commands() -> list[Command]:
    """Return the commands of all pages, in the order in which they are run."""
    found = [command for page in PAGES for command in commands_of(page)]
    return sorted(found, key=lambda each: ORDER.index(each.page) if each.page in ORDER else len(ORDER))


def reason(command: Command) -> str | None:
    """Return why a command is not run here; None if it is."""
    return next((why for pattern, why in ELSEWHERE.items() if command.matches(pattern)), None)


def test_the_tables_name_commands_that_are_there() -> None:
    every = commands()
    assert len(every) > 150
    for table in (ELSEWHERE, SHORTER):
        for pattern in table:
            assert any(each.matches(pattern) for each in every), f"{pattern}: no such command in the documents"
    assert not [each.name for each in every if reason(each) is None and not each.line.startswith("safmn ")]
    assert len([each for each in every if reason(each) is None]) > 50


COPIED = {r"--weights other\.pth": ("experiments/mine/models/net_g_latest.pth", "other.pth")}
"""What is copied before a command: files that only an earlier command can make."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the commands are run; loggers are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    document_world.make(tmp_path)
    log = logging.getLogger("safmn")
    handlers, propagate, level = list(log.handlers), log.propagate, log.level
    yield tmp_path
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


def run(command: Command) -> int:
    """Run a command in this process and return its exit status."""
    for pattern, (source, target) in COPIED.items():
        if command.matches(pattern):
            shutil.copy(source, target)
    added = next((more for pattern, more in SHORTER.items() if command.matches(pattern)), "")
    return cli.main(shlex.split(f"{command.line} {added}")[1:])


def test_quick_commands_run(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ran = 0
    for command in commands():
        if reason(command) is None and not command.matches(SLOW):
            assert run(command) == 0, f"{command.name}\n{capfd.readouterr().err[-1500:]}"
            ran += 1
    assert ran > 20


@pytest.mark.slow
def test_all_commands_run(world: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> None:
    if not request.config.getoption("--all-commands"):
        pytest.skip("takes minutes: pytest --all-commands")
    for line in document_world.FIRST:
        assert cli.main(shlex.split(line)[1:]) == 0, line
    failed = []
    for command in commands():
        if reason(command) is None and (status := run(command)) != 0:
            failed.append(f"{command.name}\nexit status {status}\n{capfd.readouterr().err[-1500:]}")
    assert not failed, "\n\n".join(failed)
