"""Put a report together from folders of training runs and tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safmn.errors import UserError, did_you_mean
from safmn.report.page import Page
from safmn.report.results import REPORT, Test, is_test, read_test
from safmn.report.runs import Run, is_run, make_names_unique, read_run
from safmn.report.scores import add_tests
from safmn.report.training import add_training


@dataclass(frozen=True)
class Sources:
    """What a report is about.

    Attributes:
        runs: training runs, in the order of the command line.
        tests: tests, likewise.
    """

    runs: list[Run]
    tests: list[Test]


def read_sources(folders: Sequence[Path]) -> Sources:
    """Read training runs (``experiments/<name>``) and tests (``results/<name>``).

    Raises:
        UserError: a folder is missing, is neither, is given twice, or holds nothing to show yet.
    """
    sources = Sources([], [])
    seen: set[Path] = set()
    for folder in folders:
        _check(folder)
        if folder.resolve() in seen:
            raise UserError(f"{folder} is given twice")
        seen.add(folder.resolve())
        if is_test(folder):
            sources.tests.append(read_test(folder))
        if is_run(folder):
            sources.runs.append(read_run(folder))
    make_names_unique(sources.runs)
    make_names_unique(sources.tests)
    return sources


def build_page(sources: Sources, *, images: int = 6, megabytes: float = 24.0) -> Page:
    """Return the report as a page.

    Args:
        images: how many images of each set are shown.
        megabytes: limit of all embedded images together.
    """
    every: list[Run | Test] = [*sources.runs, *sources.tests]
    names = [source.name for source in every]
    page = Page(
        names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more",
        ", ".join(os.path.relpath(source.root) for source in every),
        megabytes=megabytes,
    )
    page.series += [run.name for run in sources.runs]
    if sources.runs:
        add_training(page, sources.runs, images=images)
    if sources.tests:
        add_tests(page, sources.tests, images=images)
    return page


def _check(folder: Path) -> None:
    if not folder.exists():
        siblings = [path.name for path in folder.parent.glob("*") if path.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"{folder}: there is no such folder.{did_you_mean(folder.name, siblings)}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder of a training run (experiments/<name>) or a test")
    if not (is_run(folder) or is_test(folder)):
        inside = sorted(str(path) for path in folder.glob("*") if path.is_dir() and (is_run(path) or is_test(path)))
        better = f" Give one of the folders in it: {', '.join(inside[:5])}." if inside else ""
        raise UserError(
            f"{folder} is neither a training run (no record.jsonl, no train_*.log, no tb_logger) nor a test (no "
            f"{REPORT}).{better}"
        )
