"""Documents: linked files of the repository and files named in the text exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "datasets/README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_linked_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_named_files_exist(page: Path) -> None:
    named = re.findall(r"\b((?:scripts|options|safmn|tests)/[\w/]+\.(?:py|yml|json|cpp|sh))\b", page.read_text("utf-8"))
    example = re.compile(
        r"my_x4|scripted_backend|tiny_arch|gradient_loss|mean_error|gradients|dust"
    )  # files that readers create in examples
    assert sorted({name for name in named if not (REPOSITORY / name).exists() and not example.search(name)}) == []
