"""Collecting what is wrong with an option file, so that a person sees all of it at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from safmn.errors import OptionError

KeyPath: TypeAlias = tuple[str | int, ...]

_log = logging.getLogger(__name__)


def show_path(path: Sequence[str | int]) -> str:
    """``("train", "optim_g", "betas", 1)`` as ``train.optim_g.betas[1]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


class Problems:
    """Mistakes (and remarks) about one option file, each with its key path and, where known, its line.

    Attributes:
        names_may_come: components of unknown names are no mistake yet: ``imports`` may register them.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self.names_may_come = False
        self.lines: dict[KeyPath, int] = {}
        self.overridden: dict[KeyPath, str] = {}  # key path -> the override it came from
        self._found: list[tuple[KeyPath, int | None, str]] = []
        self._warnings: list[tuple[KeyPath, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def before_imports(self) -> Problems:
        """The mistakes so far, as a beginning for those that are found before anything is imported."""
        early = Problems(self.source)
        early.names_may_come = True
        early.lines, early.overridden = self.lines, self.overridden
        early._found = list(self._found)
        return early

    def add(self, path: Sequence[str | int], message: str, *, line: int | None = None) -> None:
        """Note a mistake at a key path; the line is looked up where it is not given."""
        entry = (tuple(path), line, message)
        if entry not in self._found:
            self._found.append(entry)

    def warn(self, path: Sequence[str | int], message: str) -> None:
        """Note something that is accepted and has to be said."""
        self._warnings.append((tuple(path), message))

    def log_warnings(self) -> None:
        """Log every remark once."""
        for path, message in dict.fromkeys(self._warnings):
            _log.warning("%s: %s: %s", self.source, show_path(path), message)

    def raise_first(self) -> None:
        """Raise the first mistake without file and key, for a value that stands alone."""
        if self._found:
            raise OptionError(self._found[0][2])

    def raise_all(self) -> None:
        """Raise one OptionError that lists every mistake in the order of the file, if there is any."""
        if not self._found:
            return
        entries = [(self._line(path, line), path, message) for path, line, message in self._found]
        entries.sort(key=lambda entry: entry[0] or 0)
        described = [self._describe(line, path, message) for line, path, message in entries]
        if len(described) == 1:
            raise OptionError(f"{self.source}{described[0]}")
        listed = "\n".join(f"  {text.removeprefix(', ').removeprefix(': ')}" for text in described)
        raise OptionError(f"{self.source} has {len(described)} mistakes:\n{listed}")

    def _line(self, path: KeyPath, line: int | None) -> int | None:
        """The line of the key, or of the nearest section above it that stands in the file."""
        while line is None and path:
            if path in self.overridden:
                return None
            line = self.lines.get(path)
            path = path[:-1]
        return line

    def _describe(self, line: int | None, path: KeyPath, message: str) -> str:
        where = f", line {line}" if line else ""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                where = f", --force_yml {self.overridden[path[:length]]}"
                break
        key = f": {show_path(path)}" if path else ""
        return f"{where}{key}: {message}"
