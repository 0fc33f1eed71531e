"""Results that are kept in the user's cache folder, so that what was measured once is not measured again.

Each question, which contains everything that its results depend on, has a file of lines. An interrupted command loses
nothing, and several commands can write at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safmn.system.files import cache_folder

logger = logging.getLogger(__name__)

_MOST = 400  # files that are kept in a folder


class KeptLines:
    """The kept results of one question.

    Args:
        folder: name of a folder in the cache folder.
        question: all that the results depend on; None: nothing is read or kept.
    """

    def __init__(self, folder: str, question: Any) -> None:
        self._file: Path | None = None
        if question is not None:
            key = hashlib.sha256(json.dumps(question, sort_keys=True, default=str).encode()).hexdigest()[:32]
            self._file = cache_folder() / folder / f"{key}.jsonl"

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Yield the kept results; damaged lines are left out."""
        if self._file is None:
            return
        try:
            text = self._file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry

    def add(self, entry: Mapping[str, Any]) -> None:
        """Keep a result. A cache that cannot be written is not an error."""
        if self._file is None:
            return
        try:
            if not self._file.exists():
                self._file.parent.mkdir(parents=True, exist_ok=True)
                _forget_oldest(self._file.parent)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(entry)}")  # first the line's end: half a line may be left of before
        except OSError as error:
            logger.info("results cannot be kept for the next run: %s", error)
            self._file = None

    def clear(self) -> None:
        """Forget the results of this question."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
    for file in files[: -_MOST + 1]:
        file.unlink(missing_ok=True)
