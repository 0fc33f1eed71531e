"""Write options as YAML, and compare two option files."""

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
    """The type of :data:`MISSING`, which stands for the value of an absent key."""

    def __repr__(self) -> str:
        return "(absent)"


MISSING = MissingType()


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that quotes exactly the text that our reader would not read as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own form

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in RESOLVERS:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def to_yaml(data: Any, *, in_one_line: bool = False) -> str:
    """Return plain data as YAML text that reads back as the same data.

    Args:
        in_one_line: with braces and brackets, as ``{type: L1Loss, loss_weight: 1.0}``.
    """
    flow, width = (True, 10**9) if in_one_line else (False, 120)
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width, default_flow_style=flow)
    return text.removesuffix("...\n").rstrip("\n") if in_one_line else text


def dump(options: Options) -> str:
    """Return the text of an option file with all options, including defaults. Loading it gives the same options."""
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
    """Return the differences of two option files: ``(key path, old value, new value)``, in the old file's order.

    The value of an absent key is :data:`MISSING`; null is the same as absent. A value that equals the other file's
    default is not a difference. Keys without effect are ignored.

    Args:
        old: ``Options.raw`` of one file.
        new: ``Options.raw`` of the other.
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
        elif _are_sections(one, other):
            for index, (before, now) in enumerate(zip(one, other, strict=True)):
                _compare((*where, key, index), before, now, found)
        elif key not in without_effect and not _same(one, other, defaults.get(key)):
            found.append((show_path((*where, key)), one, other))


def _are_sections(one: Any, other: Any) -> bool:
    """Return whether both are lists of sections (like ``train.losses``) of the same length."""
    lists = isinstance(one, list) and isinstance(other, list) and len(one) == len(other)
    return lists and all(isinstance(item, Mapping) for item in (*one, *other))


def _same(old: Any, new: Any, default: Any) -> bool:
    old, new = (default if value is None or value is MISSING else value for value in (old, new))
    if isinstance(old, bool) != isinstance(new, bool):
        return False
    return bool(_plain(old) == _plain(new))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # defaults may be tuples; values in files are lists


def _defaults(where: KeyPath, section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the defaults of the keys of one section."""
    if where in _SECTIONS:
        return struct_defaults(_SECTIONS[where])
    if where[:1] == ("datasets",) and len(where) == 2:
        return datasets.defaults_of(section)
    name = where[-2] if isinstance(where[-1], int) else where[-1]
    return components.defaults_of(str(name), section)


def _without_effect(where: KeyPath) -> Collection[str]:
    if not where:
        return ("use_static_graph", "auto_resume")
    if where[0] != "datasets":
        return ()
    repeated = ("phase", "scale") if len(where) == 2 else ()  # the section's name and the top level decide them
    return (*datasets.WITHOUT_EFFECT, *repeated)
