"""Import the Python files and modules listed in ``imports``, which register the user's own components."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safmn import registry
from safmn.basicsr_paths import advice
from safmn.imports import allow, import_named, missing_file
from safmn.options.problems import Problems
from safmn.own_code import described


def names_of(data: Mapping[str, Any]) -> dict[int, str]:
    """Return the names in ``imports`` by their index. Entries that are not text are reported by the type check."""
    names = data.get("imports")
    return {
        number: name for number, name in enumerate(names if isinstance(names, list) else []) if isinstance(name, str)
    }


def check_files(data: Mapping[str, Any], problems: Problems) -> None:
    """Note missing files as mistakes, without importing anything."""
    for number, name in names_of(data).items():
        if mistake := missing_file(name, problems.source):
            problems.add(("imports", number), f"{name} cannot be imported: FileNotFoundError: {mistake}")


def _as_module(name: str, error: BaseException) -> str:
    """Return advice if a file or folder would be a package if it had an ``__init__.py``; else an empty text."""
    relative = name.endswith(".py") and isinstance(error, ImportError) and "relative import" in str(error)
    if relative or Path(name).expanduser().is_dir():
        folder = Path(name).parent if relative else Path(name)
        return f"\n    {folder} is a package if it has an __init__.py: add one, which may be empty, or name the files."
    return ""


def import_all(data: Mapping[str, Any], problems: Problems) -> None:
    """Import the files (``my_arch.py``), packages and modules (``hat.archs``) in ``imports``, once per process.

    Any exception that they raise is noted as a mistake in the option file.
    """
    names = names_of(data)
    if names:
        registry.import_basicsr()
    for number, name in names.items():
        try:
            allow(import_named(name))
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            reason = f"{described(error)}{advice(error)}{_as_module(name, error)}"
            problems.add(("imports", number), f"{name} cannot be imported: {reason}", cause=error)
