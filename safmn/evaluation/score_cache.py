"""The user's cache of scores: what was measured once is not measured again.

A score is kept under everything that it depends on: the method (for networks: code and weights), the image pair, the
metric with its arguments, the device type, the precision, and the versions of torch and SAFMN. Each method has a file
of lines, so an interrupted command loses nothing, and several commands can write at the same time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safmn.system.files import cache_folder

logger = logging.getLogger(__name__)

_VERSION = 2  # of what scores mean; raise it when padding, rounding or a metric changes
_MOST = 400  # files that are kept


class ScoreCache:
    """The scores of one method.

    Args:
        question: all that the scores depend on, except image and metric; None: nothing is remembered.
    """

    def __init__(self, question: Mapping[str, Any] | None) -> None:
        self._scores: dict[tuple[str, str], float] = {}
        self._file: Path | None = None
        if question is not None:
            key = hashlib.sha256(json.dumps([_VERSION, question], sort_keys=True, default=str).encode()).hexdigest()[
                :32
            ]
            self._file = cache_folder() / "scores" / f"{key}.jsonl"
            self._read()

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, image: str, metric: str) -> float | None:
        """Return the score of an image, or None if it was not measured before."""
        return self._scores.get((image, metric))

    def put(self, image: str, metric: str, value: float) -> None:
        """Keep a score. A cache that cannot be written is not an error."""
        self._scores[image, metric] = value
        if self._file is None:
            return
        line = json.dumps({"image": image, "metric": metric, "value": value})
        try:
            if not self._file.exists():
                self._file.parent.mkdir(parents=True, exist_ok=True)
                _forget_oldest(self._file.parent)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}")  # first the line's end: an interrupted command may have left half a line
        except OSError as error:
            logger.info("scores cannot be kept for the next run: %s", error)
            self._file = None

    def _read(self) -> None:
        """Read the file; damaged lines are left out."""
        assert self._file is not None
        try:
            text = self._file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._scores[str(entry["image"]), str(entry["metric"])] = float(entry["value"])
            except (ValueError, KeyError, TypeError):
                continue


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
    for file in files[: -_MOST + 1]:
        file.unlink(missing_ok=True)


def file_digest(*paths: Path | str) -> str:
    """Return a hash of the contents of files, for :class:`ScoreCache`."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()[:32]
