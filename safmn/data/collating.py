"""Put the samples of a data set into a batch; a user's data set that gives others than images by name is explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from safmn.errors import DataError, first_line

_LARGEST = 30.0
"""Largest absolute value that an image may have after a normalisation; 0 to 255 exceeds it."""
SOURCE = "data_set"
"""Key of a batch: a data set of the user's, with its place, for messages."""
_ITEM = 'a dict with the images "lq" and "gt", float32 tensors (3, h, w) in [0, 1]'


def collated(samples: Sequence[Any], source: str) -> dict[str, Any]:
    """Return samples as a batch: tensors stacked, arrays and numbers as tensors, texts listed.

    Args:
        samples: each a dict with the same keys.
        source: the data set's class, for messages.

    Raises:
        DataError: the samples cannot be put together; the message names the key.
    """
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise DataError(f"the data set {source} gives a {type(sample).__name__}; an item is {_ITEM}")
    try:
        batch: dict[str, Any] = default_collate(list(samples))
    except (TypeError, RuntimeError, KeyError) as error:
        reason = None if "memory" in str(error) else _why(samples)
        if reason is None:  # it is not for their content
            raise
        raise DataError(f"the samples of the data set {source} cannot be put into a batch: {reason}") from error
    return batch


def _why(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why samples cannot be put together; None if it is not for their content."""
    keys = [set(sample) for sample in samples]
    differing = set[str]().union(*keys) - keys[0].intersection(*keys)
    if differing:
        return f"not all of them have the key {min(differing)!r}"
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        shapes = {tuple(value.shape) for value in values if hasattr(value, "shape")}
        if len(shapes) > 1:
            return f"{key!r} has the shapes {', '.join(map(str, sorted(shapes)))}"
        try:
            default_collate(values)
        except (TypeError, RuntimeError, KeyError) as error:
            kinds = ", ".join(sorted({type(value).__name__ for value in values}))
            return f"{key!r} is {kinds}: give tensors, arrays, numbers or texts ({first_line(error)})"
    return None


def image_of(batch: Mapping[str, Any], key: str) -> torch.Tensor:
    """Return the images ``lq`` or ``gt`` of a batch, (B, C, h, w).

    Raises:
        DataError: the data set does not give them, or not as float32.
    """
    if key not in batch:
        given = ", ".join(repr(name) for name in batch if name not in ("keys", SOURCE))
        raise DataError(f"{batch.get(SOURCE, 'the training set')} gives no {key!r}, only {given}; an item is {_ITEM}")
    value = batch[key]
    if not torch.is_tensor(value) or value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        found = str(value.dtype).removeprefix("torch.") if torch.is_tensor(value) else type(value).__name__
        raise DataError(f"{batch.get(SOURCE, 'the training set')} gives {key!r} as {found}; an item is {_ITEM}")
    images: torch.Tensor = value
    return images


def odd_values(batch: Mapping[str, Any]) -> str | None:
    """Return a sentence if images of a batch look like values of 0 to 255, which would be trained on as they are."""
    for key in ("lq", "gt"):
        value = batch.get(key)
        if torch.is_tensor(value) and value.is_floating_point() and value.numel():
            largest = float(value.detach().float().abs().max())
            if largest > _LARGEST:
                return f"{key} has values up to {largest:.0f}: images are expected in [0, 1], or near it if normalised"
    return None
