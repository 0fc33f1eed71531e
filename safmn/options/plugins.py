"""``imports`` of an option file: Python that registers networks, data sets, losses and metrics of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safmn import registry
from safmn.imports import import_named, missing_file
from safmn.options.problems import Problems


def names_of(data: Mapping[str, Any]) -> dict[int, str]:
    """What ``imports`` names, by its place in the list; what is no text is left to the check of types."""
    names = data.get("imports")
    return {
        number: name for number, name in enumerate(names if isinstance(names, list) else []) if isinstance(name, str)
    }


def check_files(data: Mapping[str, Any], problems: Problems) -> None:
    """Note the files that are not there, before any is imported."""
    for number, name in names_of(data).items():
        if mistake := missing_file(name):
            problems.add(("imports", str(number)), f"{name} cannot be imported: FileNotFoundError: {mistake}")


def import_all(data: Mapping[str, Any], problems: Problems) -> None:
    """Import what ``imports`` names, once in a process: files (``my_arch.py``) or installed modules (``hat.archs``).

    Whatever a file or module raises is noted as a mistake in the option file.
    """
    names = names_of(data)
    if names:
        registry.import_basicsr()
    for number, name in names.items():
        try:
            import_named(name)
        except (Exception, SystemExit) as error:  # it is anybody's code
            problems.add(("imports", str(number)), f"{name} cannot be imported: {type(error).__name__}: {error}")
