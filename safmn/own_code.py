"""Locate an exception in the user's own code: file, line, function, and the chain of causes in one short block."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from safmn.errors import UserError

_PACKAGE = str(Path(__file__).resolve().parent)
_LONGEST_LINE = 160  # characters of a line of code in a message
_MOST_CAUSES = 4


@lru_cache(maxsize=1)
def _libraries() -> tuple[str, ...]:
    """Return the folders of Python's library and of installed packages."""
    paths = sysconfig.get_paths()
    named = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib") if name in paths}
    named |= {entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")}
    return tuple({os.path.realpath(folder) + os.sep for folder in named})


def _imported_folders() -> tuple[str, ...]:
    """Return the folders of the modules that ``imports`` named: own code, even if it is installed."""
    module = sys.modules.get("safmn.imports")
    origins = [entry.origin for entry in module.imported()] if module is not None else []
    return tuple(os.path.realpath(Path(origin).parent) + os.sep for origin in origins if os.path.isabs(origin))


def is_own(file: str) -> bool:
    """Return whether a source file is the user's: neither SAFMN's nor Python's nor an installed package's.

    An installed package that ``imports`` names is the user's.
    """
    if file.startswith("<") or not file:
        return False
    real = os.path.realpath(file)
    if real.startswith(_PACKAGE + os.sep):
        return False
    if not real.startswith(_libraries()):
        return True
    return any(real.startswith(folder) and folder not in _libraries() for folder in _imported_folders())


def chain(error: BaseException) -> list[BaseException]:
    """Return an exception and its causes, outermost first."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return found


def is_from_own_code(error: BaseException) -> bool:
    """Return whether an exception, or one of its causes, is a bug in the user's code: not a :class:`UserError`."""
    return any(
        hasattr(link, "worker_traceback")
        or (_own_place(link) is not None and not isinstance(link, (UserError, KeyboardInterrupt)))
        for link in chain(error)
    ) and not _is_out_of_memory(error)


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, which no line of the user's code is to blame for."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def described(error: BaseException) -> str:
    """Return type, message and place of an exception, then those of its causes, one line each.

    The place is the innermost line of the user's code. Without one, it is the innermost line outside of torch.

    >>> described(error)
    ZeroDivisionError: division by zero
        my_parts.py, line 12, in forward: return x / 0
    """
    lines: list[str] = []
    links = [link for link in chain(error) if not isinstance(link, UserError) or link is error]
    for number, link in enumerate(links[:_MOST_CAUSES]):
        text = " ".join(str(link).split()) if number else str(link).strip()
        head = f"{type(link).__name__}: {text}" if text else type(link).__name__
        lines.append(head if number == 0 else f"    caused by {head}")
        place = _own_place(link) or (_innermost(link.__traceback__) if number == 0 else None)
        lines += [f"    {place}"] if place else []
        if number == 0:
            lines += [f"    {note}" for note in dict.fromkeys(getattr(link, "__notes__", []))]
    return "\n".join(lines)


def causes_missing_in(text: str, error: BaseException) -> str:
    """Return lines for the causes of a UserError in the user's code whose places its message ``text`` does not give."""
    lines = ""
    for link in chain(error):
        place = None if isinstance(link, UserError) else _own_place(link)
        if place is not None and place not in text + lines:
            lines += f"\n    caused by {described(link)}"
    return lines


def _own_place(error: BaseException) -> str | None:
    """Return the innermost place in the user's code, or None."""
    if isinstance(error, SyntaxError) and error.filename and is_own(error.filename):
        return _place(error.filename, error.lineno or 0, None, (error.text or "").strip())
    frames = [frame for frame in _frames(error.__traceback__) if is_own(frame[0])]
    return _place(*frames[-1]) if frames else None


def _innermost(tb: TracebackType | None) -> str | None:
    """Return the innermost place outside of torch, or the innermost one."""
    frames = list(_frames(tb))
    outside = [frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame[0]]
    return _place(*(outside or frames)[-1]) if frames else None


def _frames(tb: TracebackType | None) -> Iterator[tuple[str, int, str]]:
    for frame, line in traceback.walk_tb(tb):
        yield frame.f_code.co_filename, line, frame.f_code.co_name


def _place(file: str, line: int, function: str | None, code: str | None = None) -> str:
    code = linecache.getline(file, line).strip() if code is None else code
    code = code if len(code) <= _LONGEST_LINE else code[: _LONGEST_LINE - 3] + "..."
    where = f", in {function}" if function and function != "<module>" else ""
    return f"{_shown(file)}, line {line}{where}" + (f": {code}" if code else "")


def _shown(file: str) -> str:
    """Return a path relative to the working directory if it is inside, otherwise as it is."""
    with contextlib.suppress(ValueError, OSError):
        return str(Path(file).resolve().relative_to(Path.cwd()))
    return file


def defined_at(thing: object) -> str:
    """Return `` (my_parts.py, line 12)`` for a class, function or object of the user's code, to append to its name.

    It is empty for others.
    """
    return _defined_at(thing if isinstance(thing, type) or inspect.isroutine(thing) else type(thing))


@lru_cache(maxsize=256)  # it reads the source, and a training step asks for it
def _defined_at(kind: object) -> str:
    try:
        file, line = inspect.getsourcefile(kind) or "", inspect.getsourcelines(kind)[1]  # type: ignore[arg-type]
    except (TypeError, OSError):  # built in, or made by exec
        return ""
    return f" ({_shown(file)}, line {line})" if is_own(file) else ""


def full_traceback(error: BaseException) -> str:
    """Return the whole traceback with all causes, and that of a worker process if the error came from one."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    remote = [getattr(link, "worker_traceback", "") for link in chain(error)]
    return "".join([*(f"in the worker process:\n{part}\n" for part in remote if part), text])
