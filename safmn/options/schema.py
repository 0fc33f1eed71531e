"""Generate the JSON Schema of option files, with which editors complete and check them.

``python -m safmn.options.reference`` writes it to ``safmn/options/schema.json``. The first line of every file in
``options/`` names that file. The schema does not contain users' own components, which only
:func:`safmn.options.load_options` can check.

A file with ``base`` changes another one. It may leave any key out, also the type of a component. So ``$defs`` says for
each section which keys it may have, and, in the entries named ``whole ...``, what it must have without a base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import msgspec

from safmn.options import described
from safmn.options.datasets import LoaderOptions, idle_keys
from safmn.options.described import Described, DescribedKey
from safmn.options.losses import PUBLISHED
from safmn.options.signatures import REQUIRED
from safmn.options.types import (
    DistParams,
    FlatAreasSection,
    LoggerSection,
    OptionFile,
    PathOptions,
    TeacherSection,
    TrainSection,
    ValSection,
    WandbOptions,
)

Schema = dict[str, Any]

_SECTIONS = (
    DistParams,
    FlatAreasSection,
    LoggerSection,
    PathOptions,
    TeacherSection,
    TrainSection,
    ValSection,
    WandbOptions,
)
_NULL = {"type": "null"}


def json_schema() -> Schema:
    """Return the schema of a whole option file, with the arguments of all components of SAFMN, BasicSR and torch."""
    kinds = {kind.__name__: described.section(kind) for kind in _SECTIONS}
    components = {
        "network": described.installed(described.networks()),
        "loss": described.installed(described.losses()),
        "listed_loss": described.installed(described.losses()),
        "metric": described.installed(described.metrics()),
        "optimiser": described.optimisers(),
        "scheduler": described.schedules(),
        "dataset": described.installed(described.data_sets()),
    }
    beside = {
        "listed_loss": described.loss_keys().keys,
        "metric": [_better()],
        "dataset": _beside_data_sets(),
    }
    sections = {name: _section(kind) for name, kind in kinds.items()}
    sections |= {name: _by_type(name, each, beside=beside.get(name, ())) for name, each in components.items()}
    whole = {name: _needs(kind) for name, kind in kinds.items()}
    whole |= {name: _needs_by_type(each) for name, each in components.items()}
    top = _section(described.section(OptionFile))
    models = [model.name for model in described.installed(described.models())]
    _place(top, {"model_type": {"type": "string", "enum": models}, "<<": {}})
    _place_sections(top, sections, _ref)
    needed = _needs(described.section(OptionFile))
    _place_sections(needed, whole, lambda name: _ref(f"whole {name}"))
    top |= {"if": {"properties": {"base": {"type": "string"}}, "required": ["base"]}, "else": needed}
    draft = "https://json-schema.org/draft/2020-12/schema"
    definitions = {**sections, **{f"whole {name}": each for name, each in whole.items()}}
    return {"$schema": draft, "title": "SAFMN option file", **top, "$defs": definitions}


def _place_sections(top: Schema, sections: dict[str, Schema], ref: Callable[[str], Schema]) -> None:
    """Put the schemas of sections in the places where option files have them. Every section may be null."""

    def one(name: str) -> Schema:
        return _or_null(ref(name))

    def named(name: str) -> Schema:
        return _or_null({"type": "object", "additionalProperties": one(name)})

    _place(top, {"network_g": one("network"), "network_d": one("network"), "datasets": named("dataset")})
    _place(top, {"path": one("PathOptions"), "train": one("TrainSection"), "val": one("ValSection")})
    _place(top, {"logger": one("LoggerSection"), "dist_params": one("DistParams")})
    train = sections["TrainSection"]
    _place(train, {key: one("loss") for key in PUBLISHED})
    entry = {"allOf": [_ref("listed_loss"), _ref("whole listed_loss")]}  # lists are not merged with those of the base
    _place(train, {"losses": _or_null({"type": "array", "items": entry})})
    _place(train, {"optim_g": one("optimiser"), "optim_d": one("optimiser"), "scheduler": one("scheduler")})
    _place(train, {"teacher": one("TeacherSection"), "flat_areas": one("FlatAreasSection")})
    _place(sections["ValSection"], {"metrics": named("metric")})
    _place(sections["LoggerSection"], {"wandb": one("WandbOptions"), "mlflow": one("MlflowOptions")})


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _place(section: Schema, keys: Schema) -> None:
    """Set the schemas of keys. Their descriptions stay, and what a key needs."""
    properties = section.setdefault("properties", {})
    for name, schema in keys.items():
        text = properties.get(name, {}).get("description")
        needs = {"not": properties[name]["not"]} if "not" in properties.get(name, {}) else {}
        properties[name] = {**schema, **needs, **({"description": text} if text else {})}


def _better() -> DescribedKey:
    text = "Which values are better, `higher` or `lower`; default: `higher`."
    return DescribedKey("better", str, None, text)


def _beside_data_sets() -> list[DescribedKey]:
    """Return the keys that every data set's section may have: the loader's, and those without effect."""
    loader = described.section(LoaderOptions).keys
    own = [DescribedKey(key.name, key.hint, None, key.text) for key in loader]
    filled_in = [DescribedKey(name, Any, None, "") for name in ("name", "phase", "scale")]
    return [*filled_in, *own, *(DescribedKey(name, Any, None, text) for name, text in idle_keys().items())]


def _section(kind: Described) -> Schema:
    """Return which keys a section may have."""
    return {"type": "object", "description": kind.text, "additionalProperties": False, **_properties(kind.keys)}


def _by_type(name: str, kinds: Sequence[Described], *, beside: Sequence[DescribedKey] = ()) -> Schema:
    """Return which keys a section may have whose ``type`` is one of the components, and whose other keys are arguments.

    Without a type, which a base then has, it may have the keys of any one of the components.

    Args:
        name: the entry of ``$defs`` for the result.
        kinds: the components.
        beside: keys that are accepted for every component.
    """
    cases = []
    for kind in kinds:
        own = {key.name for key in kind.keys}
        accepted = _properties([*kind.keys, *(key for key in beside if key.name not in own)])
        accepted["properties"] |= {"type": {"const": kind.name, "description": kind.text}, "<<": {}}
        accepted["additionalProperties"] = kind.is_open
        cases.append({"if": _of_type(kind), "then": accepted})
    names = {"enum": [kind.name for kind in kinds]}
    any_kind = [_ref(f"{name}/allOf/{number}/then") for number in range(len(cases))]
    no_type = {"if": {"not": {"required": ["type"]}}, "then": {"anyOf": any_kind}}
    return {"type": "object", "properties": {"type": names}, "allOf": [*cases, no_type]}


def _of_type(kind: Described) -> Schema:
    return {"properties": {"type": {"const": kind.name}}, "required": ["type"]}


def _properties(keys: Sequence[DescribedKey]) -> Schema:
    return {"properties": {key.name: _property(key) for key in keys}}


def _needs(kind: Described) -> Schema:
    """Return what a section must have without a base: each required key, and null only where it is a value."""
    required = [key for key in kind.keys if key.default is REQUIRED]
    if not required:
        return {}
    filled = {key.name: {"not": _NULL} for key in required if type(None) not in get_args(key.hint)}
    return {"required": [key.name for key in required], "properties": filled}


def _needs_by_type(kinds: Sequence[Described]) -> Schema:
    """Return what a component's section must have without a base."""
    cases = [{"if": _of_type(kind), "then": needs} for kind in kinds if (needs := _needs(kind))]
    return {"required": ["type"], **({"allOf": cases} if cases else {})}


def _property(key: DescribedKey) -> Schema:
    """Return the schema of a key. It may also be null: that means "not given", or removes the key of the base."""
    schema = _type(key.hint)
    if schema:
        schema = _or_null(schema) if schema.get("anyOf", [None])[-1] != _NULL else schema
    if key.text:
        schema = {**schema, "description": key.text}
    if key.default is None or key.default is REQUIRED:
        return schema
    try:
        return {**schema, "default": msgspec.to_builtins(key.default)}
    except TypeError:
        return schema


def _type(hint: Any) -> Schema:
    """Return the schema of a plain type; empty for sections, which :func:`json_schema` inserts."""
    try:
        schema = msgspec.json.schema(hint)
    except TypeError:
        return {}
    return {} if "$ref" in schema or "$defs" in schema else schema
