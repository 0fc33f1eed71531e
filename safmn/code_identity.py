"""The identity of imported code: which files it consists of, the hash of their content, and whether the user ran it.

The files are found by reading ``import`` statements, without running anything: the named file or module, and the
modules beside it (for an installed package: in it) that these import in turn. Imports with computed names are not seen.

A digest is known if the user has once named that code, in ``imports`` of an option file or with ``--imports``. Weight
files may then name it as well: see :mod:`safmn.weights.origin`.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from safmn.system.files import cache_folder

_NOT_OWN = ("safmn", "basicsr")  # found beside a file if the working directory is a checkout


def as_module(name: str, folder: Path | None = None) -> tuple[str, Path | None]:
    """Return the dotted name of a package that is named by its path, and the folder that contains it.

    Such a path is the package's folder (``parts/``), its ``__init__.py``, or a file in it with relative imports.

    Args:
        name: an entry of ``imports``.
        folder: returned with every other name, which is returned unchanged.
    """
    path = Path(name).expanduser().resolve()
    is_file, is_path = name.endswith(".py"), "/" in name or "\\" in name
    if is_file and (path.name == "__init__.py" or _has_relative_imports(path)):
        package, last = path.parent, [] if path.name == "__init__.py" else [path.stem]
    elif is_path and not is_file:
        package, last = path, []
    else:
        return name, folder
    parts: list[str] = []
    while (package / "__init__.py").is_file():
        parts, package = [package.name, *parts], package.parent
    fits = parts and not any("." in part for part in parts)
    return (".".join(parts + last), package) if fits else (name, folder)


def _has_relative_imports(path: Path) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.level > 0 for node in ast.walk(_parsed(path)))


def _parsed(path: Path) -> ast.Module:
    """Return a file's syntax tree; that of an empty file if it is missing or no Python."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def files_of(name: str, folder: Path | None = None) -> dict[str, Path]:
    """Return the source files of a name of ``imports``, by their path relative to the folder of the first one.

    Args:
        name: a file ending in ``.py``, a package's folder, or a module's name.
        folder: where modules are looked for in addition to the installed ones; default: the working directory.

    Returns:
        The files, in a fixed order; the named one is first. Empty if the name cannot be found or is not Python source.
    """
    name, folder = as_module(name, folder)
    if name.endswith(".py"):
        path = Path(name).expanduser().resolve()
        return _closure(path.parent, [path]) if path.is_file() else {}
    root = _root_of(name.partition(".")[0], folder or Path.cwd())
    if root is None:
        return {}
    first = list(_files_named(root, name.split(".")))
    return _closure(root, first[::-1], within=name.partition(".")[0])


def digest_of(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 of the names and contents of files; empty without files."""
    return combined({name: file_digest(path) for name, path in files.items()})


def combined(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 of names and the digests of their contents; empty without files."""
    lines = "".join(f"{digest} {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest() if digests else ""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a source file. Line endings do not count: Git may change them."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def remember(digest: str) -> None:
    """Note that the user has run this code. Without a writable cache folder, nothing is noted."""
    if digest:
        with contextlib.suppress(OSError):
            folder = cache_folder() / "own_code"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / digest).touch()


def is_known(digest: str) -> bool:
    """Return whether the user has run this code before."""
    return bool(digest) and digest.isalnum() and (cache_folder() / "own_code" / digest).is_file()


def _root_of(package: str, folder: Path) -> Path | None:
    """Return the folder that contains a top-level package or module, without importing it."""
    if list(_files_named(folder, [package])):
        return folder.resolve()
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    if places:
        return Path(places[0]).resolve().parent
    return Path(spec.origin).resolve().parent if spec and spec.origin and spec.origin.endswith(".py") else None


def _closure(root: Path, first: list[Path], *, within: str | None = None) -> dict[str, Path]:
    """Return the given files and those that they import from ``root``, directly or not."""
    found: dict[str, Path] = {}
    waiting = list(reversed(first))
    while waiting:
        path = waiting.pop()
        key = path.relative_to(root).as_posix()
        if key in found:
            continue
        found[key] = path
        for parts in _imports(path, root):
            if parts and parts[0] not in _NOT_OWN and within in (None, parts[0]):
                waiting += _files_named(root, parts)
    return found


def _files_named(root: Path, parts: list[str]) -> Iterator[Path]:
    """Yield the files of a dotted name: the ``__init__.py`` of its packages, and the module."""
    place = root
    for part in parts:
        for file in (place / part / "__init__.py", place / f"{part}.py"):
            if file.is_file():
                yield file.resolve() if root in file.resolve().parents else file
                break
        place = place / part


def _imports(path: Path, root: Path) -> Iterator[list[str]]:
    """Yield the dotted names that a file imports, as parts relative to ``root``."""
    package = list(path.relative_to(root).parent.parts)
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [] if not node.level else package[: len(package) - node.level + 1]
            base = base + (node.module.split(".") if node.module else [])
            yield from ([*base, alias.name] for alias in node.names)
