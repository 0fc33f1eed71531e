"""Weights that come with the package, found by name (``--weights safmn-x2``) and verified by SHA-256.

Each set is a safetensors file of about 1 MB. Its header describes it (scale, arguments, data, iterations, commit,
metrics, licence). ``index.json`` lists names, files and checksums. docs/weights/ has a card for each set.
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
class ZooEntry:
    """One set of weights.

    Attributes:
        name: the name for ``--weights``.
        file: the path in this folder.
        sha256: the file's checksum.
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


def entries() -> dict[str, ZooEntry]:
    """Return all weights of the package, by name."""
    index: dict[str, dict[str, str]] = json.loads(INDEX.read_text(encoding="utf-8"))
    return {name: ZooEntry(name, FOLDER / facts["file"], facts["sha256"]) for name, facts in index.items()}


def path(name: str) -> Path:
    """Return the verified file of the weights called ``name``.

    Raises:
        WeightsError: no weights have that name, or the file is not the one that was shipped.
    """
    known = entries()
    if name not in known:
        raise WeightsError(
            f"{name}: no such file, and the package has no weights of that name.{did_you_mean(name, known)} "
            f"Known: {', '.join(known) or 'none'} (safmn zoo)."
        )
    entry = known[name]
    if not entry.file.is_file() or hashlib.sha256(entry.file.read_bytes()).hexdigest() != entry.sha256:
        raise WeightsError(f"{entry.file} is missing or not the file that was shipped: reinstall the package")
    return entry.file
