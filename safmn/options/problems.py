"""Collect the mistakes in an option file, so that all of them are reported at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from safmn.errors import OptionError

KeyPath: TypeAlias = tuple[str | int, ...]
REMOVED: Any = object()
"""In :attr:`Problems.edits`: the key is to be removed."""

_log = logging.getLogger(__name__)


def show_path(path: Sequence[str | int]) -> str:
    """Return a key path as text.

    >>> show_path(("train", "optim_g", "betas", 1))
    'train.optim_g.betas[1]'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


class Problems:
    """Mistakes and warnings about one option file, each with its key path and, if known, its line.

    Args:
        source: the file's name, for messages.
        tolerant: whether unknown keys, and values that a guessed type refuses, are warnings (``--tolerant``).

    Attributes:
        names_may_come: whether an unknown component name is accepted for now, because ``imports`` may register it.
        edits: key path -> the value to use instead of the file's, or ``REMOVED``; see :func:`apply_edits`.
        lines: line number of every key path.
        overridden: key path -> the ``--force_yml`` entry that set it.
        nulled: key paths that a file with ``base`` sets to null.
        inherited: key path -> the file named by ``base`` that it comes from, and its line there.
    """

    def __init__(self, source: str | Path, *, tolerant: bool = False) -> None:
        self.source = str(source)
        self.tolerant = tolerant
        self.edits: dict[KeyPath, Any] = {}
        self.names_may_come = False
        self.lines: dict[KeyPath, int] = {}
        self.overridden: dict[KeyPath, str] = {}
        self.nulled: set[KeyPath] = set()
        self.inherited: dict[KeyPath, tuple[str, int]] = {}
        self._found: list[tuple[KeyPath, int | None, str]] = []
        self._warnings: list[tuple[KeyPath, str]] = []
        self._cause: BaseException | None = None  # of the first mistake that has one

    def __len__(self) -> int:
        return len(self._found)

    def before_imports(self) -> Problems:
        """Return a copy with the mistakes so far, for the checks before ``imports`` are imported."""
        early = Problems(self.source, tolerant=self.tolerant)
        early.names_may_come = True
        early.lines, early.overridden, early.nulled = self.lines, self.overridden, self.nulled
        early.inherited = self.inherited
        early._found = list(self._found)
        return early

    def add(
        self,
        path: Sequence[str | int],
        message: str,
        *,
        line: int | None = None,
        cause: BaseException | None = None,
    ) -> None:
        """Note a mistake at a key path. Without ``line``, the key's line is used.

        Args:
            cause: the exception that shows the mistake, for ``--debug``.
        """
        self._cause = self._cause or cause
        entry = (tuple(path), line, message)
        if entry not in self._found:
            self._found.append(entry)

    def unknown(self, path: Sequence[str | int], message: str, value: Any) -> None:
        """Note an unknown key: a mistake, or with ``tolerant`` a warning, and the key is left out.

        A key that ``--force_yml`` or a file with ``base`` set to null is removed without a word.
        """
        path = tuple(path)
        if value is None and (path in self.overridden or path in self.nulled):
            self.edits[path] = REMOVED
        elif self.tolerant:
            self.warn(path, f"{message.rstrip('.')}; left out (tolerant)")
            self.edits[path] = REMOVED
        else:
            self.add(path, message)

    def guessed(self, path: Sequence[str | int], message: str) -> None:
        """Note a value that a guessed type refuses: a mistake, or with ``tolerant`` a warning."""
        if self.tolerant:
            self.warn(path, f"{message}; used as it is (tolerant)")
        else:
            self.add(path, message)

    def warn(self, path: Sequence[str | int], message: str) -> None:
        """Note a warning about a key that is accepted."""
        self._warnings.append((tuple(path), message))

    def log_warnings(self) -> None:
        """Log every warning once."""
        for path, message in dict.fromkeys(self._warnings):
            _log.warning("%s: %s: %s", self.source, show_path(path), message)

    def messages(self) -> list[tuple[KeyPath, str]]:
        """Return the key paths and the texts of the mistakes so far."""
        return [(path, message) for path, _, message in self._found]

    def raise_first(self) -> None:
        """Raise the first mistake, if any, without file and key: for a value that is not in a file."""
        if self._found:
            raise OptionError(self._found[0][2])

    def raise_all(self) -> None:
        """Raise an OptionError that lists all mistakes in the order of the file, if there are any."""
        if not self._found:
            return
        entries = [(self._line(path, line), path, message) for path, line, message in self._found]
        entries.sort(key=lambda entry: entry[0] or 0)
        described = [self._describe(line, path, message) for line, path, message in entries]
        if len(described) == 1:
            raise OptionError(f"{self.source}{described[0]}") from self._cause
        listed = "\n".join(f"  {text.removeprefix(', ').removeprefix(': ')}" for text in described)
        raise OptionError(f"{self.source} has {len(described)} mistakes:\n{listed}") from self._cause

    def _line(self, path: KeyPath, line: int | None) -> int | None:
        """Return the line of a key, or of the nearest section above it that is in the file; None if overridden."""
        while line is None and path:
            if path in self.overridden:
                return None
            line = self.lines.get(path)
            path = path[:-1]
        return line

    def _describe(self, line: int | None, path: KeyPath, message: str) -> str:
        where = f", line {line}" if line else ""
        if path in self.inherited and path not in self.lines:
            where = ", base {}, line {}".format(*self.inherited[path])
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                where = f", --force_yml {self.overridden[path[:length]]}"
                break
        key = f": {show_path(path)}" if path else ""
        return f"{where}{key}: {message}"


def apply_edits(data: dict[str, Any], edits: Mapping[KeyPath, Any]) -> None:
    """Change the values of key paths in plain data, in-place; ``REMOVED`` removes the key."""
    for path, value in edits.items():
        section: Any = data
        for part in path[:-1]:
            section = section[part]
        if value is REMOVED:
            section.pop(path[-1], None)
        else:
            section[path[-1]] = value
