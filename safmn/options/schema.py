"""The JSON Schema of option files, with which an editor completes and checks them while they are written.

``python -m safmn.options.schema > options.schema.json``, then point the editor's YAML support at it: in VS Code
``"yaml.schemas": {"options.schema.json": "options/*.yml"}``. The arguments of components are not in it; they are
checked by :func:`safmn.options.load_options`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from safmn import registry
from safmn.options.components import OPTIMIZERS, SCHEDULES, metrics, models
from safmn.options.losses import PUBLISHED
from safmn.options.types import OptionFile


def json_schema() -> dict[str, Any]:
    """The schema, with the names that each ``type`` may have: those registered now."""
    schema = msgspec.json.schema(OptionFile)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "SAFMN option file", **schema}
    sections = schema["$defs"]
    top, train = sections["OptionFile"]["properties"], sections["TrainSection"]["properties"]
    for name in ("network_g", "network_d"):
        _name_types(top[name], registry.names(registry.ARCH_REGISTRY))
    _name_types(top["datasets"]["additionalProperties"], registry.names(registry.DATASET_REGISTRY))
    for name in PUBLISHED:
        _name_types(train[name], registry.names(registry.LOSS_REGISTRY))
    for name in ("optim_g", "optim_d"):
        _name_types(train[name], OPTIMIZERS)
    _name_types(train["scheduler"], SCHEDULES)
    _name_types(sections["ValSection"]["properties"]["metrics"]["additionalProperties"], metrics())
    top["model_type"] |= {"enum": models()}
    return schema


def _name_types(section: dict[str, Any], names: Iterable[str]) -> None:
    """Let ``type`` in a component's schema (or in the member of a union that is an object) be one of the names."""
    for part in section.get("anyOf", [section]):
        if part.get("type") == "object":
            part |= {"properties": {"type": {"enum": sorted(names)}}, "required": ["type"]}


if __name__ == "__main__":
    json.dump(json_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
