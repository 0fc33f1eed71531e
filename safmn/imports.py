"""Importing Python of the user's own, from a file or by a module's name, once in a process; and again in a worker's.

What is imported is code: it runs with all rights of the user who starts the command.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from safmn import registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """Something that was imported.

    Attributes:
        name: the module's.
        origin: its file, absolute; for a module without one, what Python says instead.
        target: what imports it again in any working directory: the file, or the module's name.
        folder: where it and its neighbours are found.
    """

    name: str
    origin: str
    target: str
    folder: str


_imported: dict[str, Imported] = {}  # by target


class Imports(tuple[Imported, ...]):
    """What was imported. In a process that receives it by pickle, it is imported again."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return _import_again, (tuple(self),)


def imported() -> Imports:
    """All that this process has imported so far, in order."""
    return Imports(_imported.values())


def log_imports() -> None:
    """Log what was imported and from where."""
    for entry in _imported.values():
        logger.info("imported %s from %s", entry.name, entry.origin)


def _import_again(entries: Iterable[Imported]) -> Imports:
    registry.import_basicsr()
    for entry in entries:
        import_named(entry.target, folder=Path(entry.folder))
    return imported()


def missing_file(name: str) -> str | None:
    """What is wrong with a name of ``imports`` before anything is imported: a file that is not there. None: nothing."""
    path = Path(name).expanduser()
    return f"there is no file {path}" if name.endswith(".py") and not path.is_file() else None


def import_named(name: str, *, folder: Path | None = None) -> Imported:
    """Import a file (``my_arch.py``) or an installed module (``hat.archs``), unless that was done before.

    Args:
        folder: where modules are found beside those that are installed; default: the working directory.

    Raises:
        Exception, SystemExit: whatever it raises; it is anybody's code.
    """
    if name.endswith(".py"):
        path = Path(name).expanduser().resolve()
        if str(path) not in _imported:
            module = _import_file(path)
            _imported[str(path)] = Imported(module.__name__, str(path), str(path), str(path.parent))
        return _imported[str(path)]
    folder = folder or Path.cwd()
    with _on_path(folder):
        module = importlib.import_module(name)
    return _imported.setdefault(name, Imported(name, _origin(module), name, str(folder)))


def _origin(module: ModuleType) -> str:
    spec = module.__spec__
    return (spec.origin if spec else None) or getattr(module, "__file__", None) or "no file"


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    named = sys.modules.setdefault(path.stem, module)  # dataclasses look their module up while it is imported
    try:
        with _on_path(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        if named is module:
            del sys.modules[path.stem]
        raise
    return module


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """What lies in the folder can be imported, too."""
    added = str(folder)
    sys.path.append(added)
    try:
        yield
    finally:  # the last one: the folder may have stood there before; what the file itself puts there stays
        if added in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(added)]
