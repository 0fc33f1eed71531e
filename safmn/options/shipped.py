"""The option files that come with the package, found by name."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

_IN_PACKAGE = Path(__file__).with_name("files")  # put there by setup.py
_IN_REPOSITORY = Path(__file__).resolve().parents[2] / "options"


PEERS = "peers"  # folder of the recipes of other networks, and the beginning of their names


def shipped_files() -> dict[str, Path]:
    """Return the option files that come with the package: name without ending -> path, sorted by name."""
    return {path.stem: path for path in sorted(_folder().glob("*.yml"))}


def peer_files() -> dict[str, Path]:
    """Return the recipes of other networks: name such as ``peers/train_PAN_x4`` -> path, sorted by name."""
    return {f"{PEERS}/{path.stem}": path for path in sorted((_folder() / PEERS).glob("*.yml"))}


def _folder() -> Path:
    return _IN_PACKAGE if _IN_PACKAGE.is_dir() else _IN_REPOSITORY


def find_option_file(name: str | os.PathLike[str]) -> Path:
    """Return the shipped option file of that name (``train_x4``, ``peers/train_PAN_x4.yml``), or ``name`` as a path.

    A file of that name in the current folder comes first.
    """
    path = Path(name)
    known = {Path(): shipped_files, Path(PEERS): peer_files}.get(path.parent)
    shipped = known().get(path.as_posix().removesuffix(".yml")) if known else None
    return path if shipped is None or path.exists() else shipped


def description(path: Path) -> str:
    """Return the first sentence of an option file's first comment."""
    with path.open(encoding="utf-8") as file:
        comment = itertools.takewhile(lambda line: line.startswith("#"), file)
        text = " ".join(line[1:].strip() for line in comment if "yaml-language-server" not in line)
    return re.split(r"(?<=\.) ", text)[0]


def content(path: Path) -> str:
    """Return the text of a shipped option file, with the absolute address of the JSON Schema in its first line.

    Editors then find the schema for a copy of the file in any folder of this machine.
    """
    schema = Path(__file__).with_name("schema.json").as_uri()
    return re.sub(r"\$schema=\S+", f"$schema={schema}", path.read_text(encoding="utf-8"), count=1)
