"""Training state as tensors (safetensors) and plain data (JSON): nothing in a checkpoint can run code.

A nested state (dicts, lists, numbers, strings, tensors) is split in two. Every tensor goes into a flat mapping under
its path, and the JSON document refers to it as ``{"$tensor": path}``. Dictionaries with keys that are not strings (an
optimiser's state) become ``{"$items": [[key, value], ...]}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def split(state: Any, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split a nested state into a document for JSON and a mapping from paths to tensors (on the CPU, contiguous)."""
    if isinstance(state, Tensor):
        return {"$tensor": path}, {path: state.detach().cpu().contiguous()}
    tensors: dict[str, Tensor] = {}

    def inner(value: Any, key: Any) -> Any:
        document, found = split(value, f"{path}/{key}" if path else str(key))
        assert not tensors.keys() & found.keys(), "two tensors under one path"
        tensors.update(found)
        return document

    if isinstance(state, Mapping):
        if all(isinstance(key, str) for key in state):
            return {key: inner(value, key) for key, value in state.items()}, tensors
        return {"$items": [[key, inner(value, key)] for key, value in state.items()]}, tensors
    if isinstance(state, (list, tuple)):
        return [inner(value, index) for index, value in enumerate(state)], tensors
    return state, tensors


def join(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the nested state that :func:`split` has split, with lists for tuples."""
    if isinstance(document, dict):
        if "$tensor" in document:
            return tensors[document["$tensor"]]
        if "$items" in document:
            return {key: join(value, tensors) for key, value in document["$items"]}
        return {key: join(value, tensors) for key, value in document.items()}
    if isinstance(document, list):
        return [join(value, tensors) for value in document]
    return document
