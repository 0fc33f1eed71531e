"""The documents as a site, the notebook, and the commands in the documents."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from documented import PAGES, commands_of, inline_commands_of
from skimage import data

from safmn import cli
from safmn.imaging import write_image
from safmn.system.console import ArgumentParser

REPOSITORY = Path(__file__).resolve().parent.parent


def _missing(*modules: str) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]


def commands(page: Path) -> list[str]:
    """Return the commands of a page that call ``safmn``, in blocks of lines."""
    return [command.line for command in commands_of(page) if command.line.startswith("safmn ")]


class _Parsed(BaseException):
    """Raised when a command has parsed its arguments."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command end when it has parsed its arguments."""

    def parsed(parser: ArgumentParser, *arguments: object) -> None:
        super(ArgumentParser, parser).parse_args(*arguments)
        raise _Parsed

    def intermixed(parser: ArgumentParser, *arguments: object) -> None:
        super(ArgumentParser, parser).parse_known_args(*arguments)
        raise _Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parsed, raising=False)
    monkeypatch.setattr(ArgumentParser, "parse_intermixed_args", intermixed, raising=False)


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_commands_in_documents_have_the_arguments_of_their_verb(page: Path) -> None:
    for line in commands(page):
        verb, *arguments = shlex.split(re.sub(r"\$\w+", "4", line))[1:]
        arguments = [each for each in arguments if each not in ("...", "|", "&&")]
        assert verb in cli.VERBS, line
        main = importlib.import_module(cli.VERBS[verb][0]).main
        with pytest.raises(_Parsed):
            main(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_commands_in_sentences_name_options_of_their_verb(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may leave out arguments, so only the names of verbs and options are checked."""
    unknown: list[str] = []

    def parsed(parser: ArgumentParser, arguments: list[str], *_: object) -> None:
        given = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]  # of subcommands
        parts = [each[name] for each in choices for name in each if name in arguments]
        known = {name for part in (parser, *parts) for name in getattr(part, "_option_string_actions", ())}
        unknown.extend(f"{line}: {name}" for name in given if name not in known)
        raise _Parsed

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(ArgumentParser, name, parsed, raising=False)
    for line in inline_commands_of(page):
        verb, *arguments = shlex.split(line)[1:]
        assert verb in cli.VERBS, line
        with contextlib.suppress(_Parsed):
            importlib.import_module(cli.VERBS[verb][0]).main(arguments)
    assert not unknown


@pytest.mark.usefixtures("parse_only")
def test_a_wrong_argument_would_be_found() -> None:
    for verb in ("report", "compare"):
        with pytest.raises(SystemExit):
            importlib.import_module(cli.VERBS[verb][0]).main(["a", "--no-such-argument"])


def test_commands_are_found() -> None:
    assert len([line for page in PAGES for line in commands(page)]) > 50
    assert commands(REPOSITORY / "docs/report.md")[0] == "safmn report experiments/my_x4 -o report.html"


@pytest.mark.slow
def test_from_your_own_photographs_to_your_own_weights(tmp_path: Path) -> None:
    """Every command of the page, one after the other, with few photographs and iterations."""
    page = REPOSITORY / "docs/own_weights.md"
    for name in ("astronaut", "coffee", "rocket"):
        write_image(tmp_path / f"photographs/train/{name}.png", getattr(data, name)()[:192, :192])
    write_image(tmp_path / "photographs/val/chelsea.png", data.chelsea()[:160, :176])
    (option_file,) = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shortened = re.sub(r"(total_iter: |periods: \[)5000", r"\g<1>4", option_file)
    assert shortened.count("4\n") >= 1
    assert shortened != option_file
    (tmp_path / "my_x4.yml").write_text(shortened.replace("num_worker_per_gpu: 2", "num_worker_per_gpu: 0"))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    lines = commands(page)
    assert [line.split()[1] for line in lines] == [
        *("prepare", "prepare", "doctor", "train", "report", "compare", "upscale", "export")
    ]
    each = (  # in one process: starting takes longer than the work
        "import json, sys; from safmn.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    status = main(arguments)\n"
        "    assert status == 0, (arguments, status)\n"
    )
    command = [sys.executable, "-c", each, json.dumps([shlex.split(line)[1:] for line in lines])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for name in ("my_x4.html", "crops.png", "large/chelsea.png", "my_x4.onnx"):
        assert (tmp_path / name).is_file(), name


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """MkDocs refuses others, and is not installed everywhere."""
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/.-]+\.md", navigation))
    docs = REPOSITORY / "docs"
    assert {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} == {
        n for n in listed if (docs / n).is_file()
    }
    assert all(
        (docs / n).is_file()
        or n in ("index.md", "notebook.md", "api.md")
        or (REPOSITORY / n.removeprefix("repository/")).is_file()
        for n in listed
    )


class _References(HTMLParser):
    """What a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        names = ("src", "srcset", "poster", "data") if tag == "a" else ("src", "srcset", "poster", "data", "href")
        self.loaded += [given[name] or "" for name in names if name in given]


@pytest.mark.slow
@pytest.mark.skipif(
    bool(_missing("mkdocs", "material", "mkdocstrings_handlers")),
    reason="MkDocs is not installed: pip install -r tests/requirements-extras.txt",
)
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr  # strict: a link or an anchor that is missing is an error
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "options.html", "api.html", "notebook.html", "own_weights.html"} <= {p.name for p in pages}
    for page in pages:
        found = _References()
        found.feed(page.read_text(encoding="utf-8"))
        assert [each for each in found.loaded if re.match(r"(https?:)?//", each)] == [], page
    for style in (tmp_path / "site").rglob("*.css"):
        assert re.findall(r"url\([\"']?https?:[^)]*|@import[^;]*", style.read_text(encoding="utf-8")) == []
    api = (tmp_path / "site/api.html").read_text(encoding="utf-8")
    assert "safmn.inference.upscaler.Upscaler" in api
    assert ":class:" not in api
    assert (tmp_path / "site/notebook.html").read_text(encoding="utf-8").count("data:image/jpeg") == 1


def test_the_notebook_shows_what_it_made() -> None:
    cells = json.loads((REPOSITORY / "docs/start.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert (REPOSITORY / "docs/start.ipynb").stat().st_size < 400_000


@pytest.mark.slow
@pytest.mark.skipif(bool(_missing("nbclient", "nbformat", "ipykernel")), reason="nbclient and ipykernel are missing")
def test_the_notebook_runs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(REPOSITORY / "docs/start.ipynb", 4)
    (tmp_path / "docs").mkdir()
    (tmp_path / "options").symlink_to(REPOSITORY / "options")
    os.environ |= {"SAFMN_NOTEBOOK_ITERATIONS": "4", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    try:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "docs")}}).execute()
    finally:
        del os.environ["SAFMN_NOTEBOOK_ITERATIONS"]
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/jpeg" in output["data"] for output in shown)
    assert (tmp_path / "build/notebook/comparison.png").is_file()
