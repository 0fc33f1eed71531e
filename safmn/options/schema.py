"""Generate the JSON Schema of option files, with which editors complete and check them.

``python -m safmn.options.reference`` writes it to ``safmn/options/schema.json``. The first line of every file in
``options/`` names that file. The schema does not contain users' own components, which only
:func:`safmn.options.load_options` can check.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    sections = {kind.__name__: _section(described.section(kind)) for kind in _SECTIONS}
    loss = described.installed(described.losses())
    sections |= {
        "network": _by_type(described.installed(described.networks())),
        "loss": _by_type(loss),
        "listed_loss": _by_type(loss, beside=described.loss_keys().keys),
        "metric": _by_type(described.installed(described.metrics()), beside=[_better()]),
        "optimiser": _by_type(described.optimisers()),
        "scheduler": _by_type(described.schedules()),
        "dataset": _by_type(described.installed(described.data_sets()), beside=_beside_data_sets()),
    }
    top = _section(described.section(OptionFile))
    places = {
        "network_g": _ref("network"),
        "network_d": _or_null(_ref("network")),
        "datasets": {"type": "object", "additionalProperties": _or_null(_ref("dataset"))},
        "model_type": {"type": "string", "enum": [model.name for model in described.installed(described.models())]},
        "path": _or_null(_ref("PathOptions")),
        "train": _or_null(_ref("TrainSection")),
        "val": _or_null(_ref("ValSection")),
        "logger": _or_null(_ref("LoggerSection")),
        "dist_params": _or_null(_ref("DistParams")),
        "<<": {},
    }
    for name, schema in places.items():
        top["properties"][name] = {**top["properties"].get(name, {}), **schema}
    _place(sections["TrainSection"], {key: _or_null(_ref("loss")) for key in PUBLISHED})
    _place(sections["TrainSection"], {"losses": _or_null({"type": "array", "items": _ref("listed_loss")})})
    _place(sections["TrainSection"], {"optim_g": _ref("optimiser"), "optim_d": _or_null(_ref("optimiser"))})
    _place(sections["TrainSection"], {"scheduler": _ref("scheduler"), "teacher": _or_null(_ref("TeacherSection"))})
    _place(sections["TrainSection"], {"flat_areas": _or_null(_ref("FlatAreasSection"))})
    metric_list = {"type": "object", "additionalProperties": _or_null(_ref("metric"))}
    _place(sections["ValSection"], {"metrics": _or_null(metric_list)})
    _place(
        sections["LoggerSection"], {"wandb": _or_null(_ref("WandbOptions")), "mlflow": _or_null(_ref("MlflowOptions"))}
    )
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, "title": "SAFMN option file", **top, "$defs": sections}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _place(section: Schema, keys: Schema) -> None:
    for name, schema in keys.items():
        text = section["properties"].get(name, {}).get("description")
        section["properties"][name] = {**schema, **({"description": text} if text else {})}


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
    return {"type": "object", "description": kind.text, "additionalProperties": False, **_properties(kind.keys)}


def _by_type(kinds: Sequence[Described], *, beside: Sequence[DescribedKey] = ()) -> Schema:
    """Return the schema of a section whose ``type`` is one of the components and whose other keys are its arguments.

    Args:
        beside: keys that are accepted for every component.
    """
    cases = []
    for kind in kinds:
        own = {key.name for key in kind.keys}
        accepted = _properties([*kind.keys, *(key for key in beside if key.name not in own)])
        accepted["properties"] |= {"type": {"const": kind.name, "description": kind.text}, "<<": {}}
        accepted["additionalProperties"] = kind.is_open
        cases.append({"if": {"properties": {"type": {"const": kind.name}}}, "then": accepted})
    names = {"enum": [kind.name for kind in kinds]}
    return {"type": "object", "required": ["type"], "properties": {"type": names}, "allOf": cases}


def _properties(keys: Sequence[DescribedKey]) -> Schema:
    required = [key.name for key in keys if key.default is REQUIRED]
    properties = {key.name: _property(key) for key in keys}
    return {"properties": properties, **({"required": required} if required else {})}


def _property(key: DescribedKey) -> Schema:
    """Return the schema of a key. A key with a default may also be null, which means "not given"."""
    schema = _type(key.hint)
    if key.default is not REQUIRED and schema:
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
