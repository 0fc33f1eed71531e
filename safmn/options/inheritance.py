"""Option files that change another one: ``base: train_x4.yml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safmn.errors import OptionError, located
from safmn.options.problems import KeyPath, Problems
from safmn.options.reader import read_document
from safmn.options.shipped import find_option_file


def inherited(data: dict[str, Any], source: str | Path, problems: Problems) -> dict[str, Any]:
    """Return the data of an option file merged into that of the file named by its ``base``, and so on.

    Sections are merged key by key. Lists, and components with another ``type``, replace those of the base. A null
    removes the key of the base: it is as if neither file had it. The result has no key ``base``.

    Args:
        data: the file's data.
        source: the file.
        problems: gets the lines of the base's keys, and the keys that were set to null.

    Raises:
        OptionError: a base cannot be read, or refers to itself.
    """
    return _merged_with_base(data, Path(source), problems, [Path(source).resolve()])


def _merged_with_base(data: dict[str, Any], source: Path, problems: Problems, chain: list[Path]) -> dict[str, Any]:
    name = data.pop("base", None)
    if name is None:
        return data
    if not isinstance(name, str):
        raise OptionError(f"{source}: base: expected the name of an option file, got {name!r}")
    with located(f"{source}: base"):
        beside = source.parent / name
        file = Path(beside if beside.is_file() else find_option_file(name))
        if file.resolve() in chain:
            raise OptionError(f"{name} refers to itself, perhaps through other files")
        own = Problems(file)
        document = read_document(file, own)
        own.raise_all()
        below = _merged_with_base(document.data, file, problems, [*chain, file.resolve()])
    for path, line in document.lines.items():
        problems.inherited.setdefault(path, (str(name), line))
    return _merged(below, data, (), problems)


def _merged(below: dict[str, Any], above: dict[str, Any], where: KeyPath, problems: Problems) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        path = (*where, key)
        held = below.get(key)
        if value is None and key in below:
            problems.nulled.add(path)
        both = isinstance(held, dict) and isinstance(value, dict)
        replaced = both and "type" in value and value["type"] != held.get("type")  # type: ignore[union-attr]
        result[key] = _merged(held, value, path, problems) if both and not replaced else value  # type: ignore[arg-type]
    return result
