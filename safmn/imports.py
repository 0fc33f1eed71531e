"""Import the user's own Python code, from a file or by module name, once per process, and again in worker processes.

Imported code runs with all rights of the user who starts the command.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from safmn import code_identity, registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """An imported module.

    Attributes:
        name: the module's name.
        origin: its absolute file; for a module without a file, Python's description.
        target: the file or the module's name, for importing it again from any working directory.
        folder: the folder in which it and its neighbours are found.
        given: the name as the user gave it.
        files: its source files and those beside it that it imports: relative path -> SHA-256 of the content.
    """

    name: str
    origin: str
    target: str
    folder: str
    given: str = ""
    files: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        """The SHA-256 of all its files; empty if it has no source files."""
        return code_identity.combined(dict(self.files))


_imported: dict[str, Imported] = {}  # by target


class Imports(tuple[Imported, ...]):
    """The imported modules. A process that unpickles this object imports them again."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return _import_again, (tuple(self),)


def imported() -> Imports:
    """Return the modules that this process has imported so far, in order."""
    return Imports(_imported.values())


def entries_of(names: Iterable[str]) -> list[Imported]:
    """Return the entries of names in ``imports`` that this process has imported."""
    modules = [code_identity.as_module(name)[0] for name in names]
    targets = [str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in modules]
    return [_imported[target] for target in targets if target in _imported]


def log_imports() -> None:
    """Log the imported modules and their origins."""
    for entry in _imported.values():
        logger.info("imported %s from %s", entry.name, entry.origin)
        for file, digest in entry.files:
            logger.info("  %s: SHA-256 %s", file, digest[:16])


def _import_again(entries: Iterable[Imported]) -> Imports:
    registry.import_basicsr()
    for entry in entries:
        import_named(entry.target, folder=Path(entry.folder), given=entry.given)
    return imported()


def missing_file(name: str, option_file: str | Path | None = None) -> str | None:
    """Return a message if a name of ``imports`` is a missing file or folder, otherwise None. Nothing is imported.

    Args:
        name: the name.
        option_file: the option file that has it.
    """
    path = Path(name).expanduser()
    is_file = name.endswith(".py")
    if path.is_file() if is_file else ("/" not in name and "\\" not in name) or path.exists():
        return None
    beside = Path(option_file).parent / path if option_file is not None else None
    hint = f"; it is looked for from the working directory: write {beside}" if beside and beside.exists() else ""
    return f"there is no {'file' if is_file else 'folder'} {path}{hint}"


def import_named(name: str, *, folder: Path | None = None, given: str | None = None) -> Imported:
    """Import a file (``my_arch.py``), package (``parts/``) or module (``hat.archs``), unless it was imported before.

    Args:
        name: the file, ending in ``.py``, the package's folder, or the module's name.
        folder: a folder to search for modules in addition to the installed ones; default: the working directory.
        given: the name as the user gave it, if it is not ``name``.

    Raises:
        ImportError: another package has the name of the folder.
        Exception, SystemExit: whatever the imported code raises.
    """
    given = given or name
    named_by_path, (name, folder) = name, code_identity.as_module(name, folder)
    if name.endswith(".py"):
        path = Path(name).expanduser().resolve()
        if str(path) not in _imported:
            files = _hashed(code_identity.files_of(name))  # before it runs: it may change them
            module = _import_file(path)
            entry = Imported(module.__name__, str(path), str(path), str(path.parent), given, files)
            _imported[str(path)] = entry
        return _imported[str(path)]
    folder = folder or Path.cwd()
    if name not in _imported:
        files = _hashed(code_identity.files_of(name, folder))
        with _on_path(folder):
            if name != named_by_path:
                _check_owner(name.partition(".")[0], folder)
            module = importlib.import_module(name)
        _imported[name] = Imported(name, _origin(module), name, str(folder), given, files)
    return _imported[name]


def _check_owner(package: str, folder: Path) -> None:
    """Refuse a package in a folder if Python would import another one of its name.

    Raises:
        ImportError: the message names the other one.
    """
    spec = importlib.util.find_spec(package)
    origin = spec.origin if spec is not None else None
    if origin is None or Path(origin).resolve().parent != (folder / package).resolve():
        raise ImportError(f"Python has another package {package}, {origin or 'without a file'}: rename the folder")


def allow(entry: Imported) -> None:
    """Remember that the user named this code, so that weight files may name it as well."""
    code_identity.remember(entry.digest)


def _hashed(files: Mapping[str, Path]) -> tuple[tuple[str, str], ...]:
    return tuple((name, code_identity.file_digest(path)) for name, path in files.items())


def _origin(module: ModuleType) -> str:
    spec = module.__spec__
    return (spec.origin if spec else None) or getattr(module, "__file__", None) or "no file"


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    named = sys.modules.setdefault(path.stem, module)  # dataclasses look up their module during the import
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
    """Make the modules in the folder importable within the block."""
    added = str(folder)
    sys.path.append(added)
    try:
        yield
    finally:  # remove only our (last) entry: the folder may have been there before, and the code may have added entries
        if added in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(added)]
