"""Writing options down, and telling two option files apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from safmn.options.problems import KeyPath, show_path
from safmn.options.reader import RESOLVERS
from safmn.options.types import DegradationKeys, Options

_NOT_IN_FILE = ("source", "mode", "debug", "raw")


class MissingType:
    """Stands for the value of a key that is not there."""

    def __repr__(self) -> str:
        return "(absent)"


MISSING = MissingType()


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the text that our reader would take for something else."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own form

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in RESOLVERS:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def to_yaml(data: Any) -> str:
    """Plain data as YAML text that reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def dump(options: Options) -> str:
    """The complete options, defaults included, as the text of an option file that gives the same options."""
    data = {key: value for key, value in msgspec.to_builtins(options).items() if key not in _NOT_IN_FILE}
    keys = DegradationKeys.__struct_fields__
    data |= {key: value for key, value in options.degradation.items() if key in keys}
    data["degradation"] = {key: value for key, value in options.degradation.items() if key not in keys}
    for section in data["datasets"].values():
        section.pop("degradation", None)  # filled in from the keys above
    data["expect"] = {
        name: {**numbers.values, "tolerance": numbers.tolerance} for name, numbers in options.expect.items()
    }
    return to_yaml(data)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where two option files (``Options.raw``) differ: ``(key path, old value, new value)``, in the order of the old.

    A key that only one has shows as :data:`MISSING` in the other; a key that is null counts as absent, and numbers
    are compared as numbers.
    """
    found: list[tuple[str, Any, Any]] = []
    _compare((), old, new, found)
    return found


def _compare(where: KeyPath, old: Any, new: Any, found: list[tuple[str, Any, Any]]) -> None:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            _compare((*where, key), old.get(key, MISSING), new.get(key, MISSING), found)
    elif not _same(old, new):
        found.append((show_path(where), old, new))


def _same(old: Any, new: Any) -> bool:
    nothing = (None, MISSING)
    if any(old is value for value in nothing) and any(new is value for value in nothing):
        return True
    if isinstance(old, bool) != isinstance(new, bool):
        return False
    return bool(old == new)
