"""Convert plain values to typed ones, and note all mistakes with their key paths instead of stopping at the first."""

from __future__ import annotations

import types
import typing
from typing import Any, TypeGuard, TypeVar, get_args, get_origin

import msgspec
from msgspec import inspect as describe_type

from safmn.errors import did_you_mean
from safmn.options.problems import KeyPath, Problems

S = TypeVar("S", bound=msgspec.Struct)

_NAMES: dict[type, str] = {
    describe_type.BoolType: "true or false",
    describe_type.StrType: "text",
    describe_type.IntType: "a whole number",
    describe_type.FloatType: "a number",
    describe_type.NoneType: "null",
    describe_type.DictType: "a section",
    describe_type.StructType: "a section",
}
# Words that YAML 1.1 reads as booleans, as BasicSR does. They count only where a boolean is expected.
_BOOLEANS = {"yes": True, "on": True, "no": False, "off": False}
_BOUNDS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}


def to_struct(kind: type[S], value: Any, where: KeyPath, problems: Problems) -> S | None:
    """Convert a mapping to a Struct of the given kind. If that fails, note the mistakes and return None."""
    if not isinstance(value, dict):
        problems.add(where, f"expected a section, got {show(value)}")
        return None
    before = len(problems)
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key, given in value.items():
        if key not in fields:
            problems.unknown((*where, key), f"unknown key.{did_you_mean(key, fields)}", given)
    converted: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in value or (value[name] is None and not field.required):
            if field.required:
                problems.add(where, f"the key {name!r} is missing")
            continue
        converted[field.name] = to_type(field.type, value[name], (*where, name), problems)
    return kind(**converted) if len(problems) == before else None


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def accepts_null(hint: Any) -> bool:
    """Return whether null is a value of a type."""
    members = _members(hint)
    return types.NoneType in members or Any in members


def struct_defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the defaults of a Struct's fields, by name, without the required fields."""
    fields = msgspec.structs.fields(kind)
    made = {f.encode_name: f.default_factory() for f in fields if f.default_factory is not msgspec.NODEFAULT}
    return made | {f.encode_name: f.default for f in fields if f.default is not msgspec.NODEFAULT}


def to_type(hint: Any, value: Any, where: KeyPath, problems: Problems, *, whole_floats: bool = True) -> Any:
    """Convert a value to ``hint``, a type that msgspec knows. If that fails, note the mistake and return None.

    Integers are accepted as floats and, with ``whole_floats``, floats such as ``5e3`` as integers. ``yes``, ``no``,
    ``on`` and ``off`` are accepted as booleans, unless text is, too. Nothing else is converted.
    """
    members = _members(hint)
    if bool in members and str not in members and isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if value is None and types.NoneType in members:
        return None
    for member in members:
        if isinstance(member, type) and issubclass(member, msgspec.Struct):
            return to_struct(member, value, where, problems)
        if get_origin(member) is dict and isinstance(value, dict):
            inner = get_args(member)[1]
            return {key: to_type(inner, item, (*where, key), problems) for key, item in value.items()}
        if get_origin(member) is list and get_origin(get_args(member)[0]) is dict and isinstance(value, list):
            section = get_args(member)[0]
            return [to_type(section, item, (*where, index), problems) for index, item in enumerate(value)]
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError:
        pass
    try:
        return msgspec.convert(_whole(value) if whole_floats else value, hint)
    except msgspec.ValidationError:
        problems.add(where, f"expected {describe(hint)}, got {show(value)}{_suggestion(members, value)}")
        return None


def describe(hint: Any) -> str:
    """Return a type in words, for example ``a whole number, at least 1``."""
    return _in_words(describe_type.type_info(hint))


def show(value: Any) -> str:
    """Return a value for an error message, shortened, and with its kind if it is text or a section."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, dict):
        return "a section"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _members(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(member for part in get_args(hint) for member in _members(part))
    return (hint,)


def _whole(value: Any) -> Any:
    """Return floats without a fraction as ints, also in lists: BasicSR's files have ``val_freq: !!float 5e3``."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value


def _suggestion(members: tuple[Any, ...], value: Any) -> str:
    choices = [choice for member in members if get_origin(member) is typing.Literal for choice in get_args(member)]
    near = did_you_mean(value, choices) if choices and isinstance(value, str) else ""
    return f".{near}" if near else ""


def _in_words(info: Any) -> str:
    if isinstance(info, describe_type.UnionType):
        return " or ".join(_in_words(member) for member in info.types if member is not None)
    if isinstance(info, describe_type.LiteralType):
        return "one of " + ", ".join(repr(value) for value in info.values)
    if isinstance(info, (describe_type.ListType, describe_type.VarTupleType)):
        exactly = f" of {info.min_length} items" if info.min_length and info.min_length == info.max_length else ""
        return f"a list{exactly}, each {_in_words(info.item_type)}"
    if isinstance(info, describe_type.TupleType):
        return f"a list of {len(info.item_types)} items: " + "; ".join(_in_words(item) for item in info.item_types)
    words = _NAMES.get(type(info), "a value")
    bounds = [f"{text} {getattr(info, bound):.12g}" for bound, text in _BOUNDS.items() if _has(info, bound)]
    if getattr(info, "min_length", None):
        words += " that is not empty"
    return ", ".join([words, *bounds])


def _has(info: Any, bound: str) -> bool:
    return getattr(info, bound, None) is not None
