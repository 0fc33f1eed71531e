"""How a data set's constructor takes its options: as one dict, as in BasicSR, or as keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

_ONE_DICT = ("opt", "opts", "options", "option", "config", "cfg", "args", "section")
_OF_THE_LOADER = (
    "batch_size_per_gpu", "num_worker_per_gpu", "dataset_enlarge_ratio", "use_shuffle", "prefetch_mode",
    "num_prefetch_queue", "pin_memory", "persistent_workers",
)  # fmt: skip


def takes_keywords(kind: Any) -> bool:
    """Return whether a data set's options are keyword arguments of its constructor, not one dict.

    They are a dict if the class declares ``OPTIONS``, or if the only argument is called ``opt`` or similar.
    """
    if hasattr(kind, "OPTIONS"):
        return False
    try:
        parameters = list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError):
        return False
    first = next(iter(parameters), None)
    if first is None:
        return True
    is_dict = "Mapping" in str(first.annotation) or "dict" in str(first.annotation).lower()
    return not (first.name in _ONE_DICT or is_dict or first.kind is first.VAR_POSITIONAL)


def keyword_arguments(kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a constructor takes as keyword arguments: its own, without those of the loader."""
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    outside = ("type", "name", "phase", "scale", *_OF_THE_LOADER)
    return {key: value for key, value in options.items() if key in parameters or (takes_any and key not in outside)}
