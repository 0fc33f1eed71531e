"""Weights that come with the package: found by name (``--weights safmn-x2``), checked by SHA-256.

Each is a safetensors file of about 1 MB whose header says what it is (scale, arguments, data, iterations, commit,
metrics, licence); ``index.json`` lists names, files and checksums. docs/weights.md has a card for each.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from safmn.errors import WeightsError, did_you_mean

FOLDER = Path(__file__).resolve().parent
INDEX = FOLDER / "index.json"


@dataclass(frozen=True)
class Entry:
    """One set of weights.

    Attributes:
        name: for ``--weights``.
        file: in this folder.
        sha256: of the file.
    """

    name: str
    file: Path
    sha256: str

    @functools.cached_property
    def card(self) -> dict[str, Any]:
        """The file's header: ``type``, ``arguments``, ``scale``, ``data``, ``iterations``, ``metrics``, ..."""
        with safe_open(str(self.file), framework="pt") as file:
            return {key: _parsed(value) for key, value in (file.metadata() or {}).items() if key != "format"}


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def entries() -> dict[str, Entry]:
    """All weights of the package, by name."""
    index: dict[str, dict[str, str]] = json.loads(INDEX.read_text(encoding="utf-8"))
    return {name: Entry(name, FOLDER / facts["file"], facts["sha256"]) for name, facts in index.items()}


def path(name: str) -> Path:
    """The verified file of the weights called ``name``.

    Raises:
        WeightsError: there are none of that name, or the file is not what was shipped.
    """
    known = entries()
    if name not in known:
        raise WeightsError(
            f"{name}: no such file, and no weights of that name come with the package.{did_you_mean(name, known)} "
            f"Known: {', '.join(known) or 'none'} (safmn zoo)."
        )
    entry = known[name]
    if not entry.file.is_file() or hashlib.sha256(entry.file.read_bytes()).hexdigest() != entry.sha256:
        raise WeightsError(f"{entry.file} is missing or not the file that was shipped: install the package again")
    return entry.file
