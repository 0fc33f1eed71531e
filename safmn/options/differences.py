"""Writing options down, and telling two option files apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import yaml

from safmn.degradations.keys import PublishedKeys
from safmn.options import components, datasets
from safmn.options.problems import KeyPath, show_path
from safmn.options.reader import RESOLVERS
from safmn.options.typed import struct_defaults
from safmn.options.types import OptionFile, Options, TrainSection

_SECTIONS: dict[KeyPath, Any] = {(): OptionFile, ("train",): TrainSection}
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
    keys = PublishedKeys.__struct_fields__
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

    A key that only one has shows as :data:`MISSING` in the other; a key that is null counts as absent. Where one gives
    a value and the other leaves it at that default, and in keys that have no effect, they do not differ.
    """
    found: list[tuple[str, Any, Any]] = []
    _compare((), old, new, found)
    return found


def _compare(where: KeyPath, old: Mapping[str, Any], new: Mapping[str, Any], found: list[tuple[str, Any, Any]]) -> None:
    defaults, without_effect = _defaults(where, new), _without_effect(where)
    for key in [*old, *(key for key in new if key not in old)]:
        one, other = old.get(key, MISSING), new.get(key, MISSING)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            _compare((*where, key), one, other, found)
        elif key not in without_effect and not _same(one, other, defaults.get(key)):
            found.append((show_path((*where, key)), one, other))


def _same(old: Any, new: Any, default: Any) -> bool:
    old, new = (default if value is None or value is MISSING else value for value in (old, new))
    if isinstance(old, bool) != isinstance(new, bool):
        return False
    return bool(_plain(old) == _plain(new))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # a default may be a tuple, a value in a file is a list


def _defaults(where: KeyPath, section: Mapping[str, Any]) -> Mapping[str, Any]:
    """The defaults of the keys of one section."""
    if where in _SECTIONS:
        return struct_defaults(_SECTIONS[where])
    if where[:1] == ("datasets",) and len(where) == 2:
        return datasets.defaults_of(section)
    return components.defaults_of(str(where[-1]), section)


def _without_effect(where: KeyPath) -> Collection[str]:
    if not where:
        return ("use_static_graph", "auto_resume")
    return datasets.WITHOUT_EFFECT if where[0] == "datasets" else ()
