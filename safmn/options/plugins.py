"""``imports`` of an option file: Python that registers networks, data sets, losses and metrics of the user's own."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safmn import registry
from safmn.options.problems import Problems


def import_all(data: Mapping[str, Any], problems: Problems) -> None:
    """Import what ``imports`` names, once in a process: files (``my_arch.py``) or installed modules (``hat.archs``).

    Whatever a file or module raises is noted as a mistake in the option file.
    """
    names = data.get("imports")
    if names:
        registry.import_basicsr()
    for number, name in enumerate(names if isinstance(names, list) else []):
        if not isinstance(name, str):
            continue  # the check of types says so
        try:
            if name.endswith(".py"):
                _import_file(Path(name).expanduser())
            else:
                with _on_path(Path.cwd()):
                    importlib.import_module(name)
        except (Exception, SystemExit) as error:  # it is anybody's code
            problems.add(("imports", str(number)), f"{name} cannot be imported: {type(error).__name__}: {error}")


def _import_file(path: Path) -> None:
    key = f"safmn_imports:{path.resolve()}"
    if key in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    named = sys.modules.setdefault(path.stem, module)  # dataclasses look their module up while it is imported
    try:
        with _on_path(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        if named is module:
            del sys.modules[path.stem]
        raise
    sys.modules[key] = named


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
