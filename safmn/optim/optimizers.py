"""Optimisers by name, with the fused implementation where torch has one for the device."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from safmn.errors import OptionError, did_you_mean
from safmn.optim.muon import Muon

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Muon": Muon,
    "SGD": torch.optim.SGD,
}


def build_optimizer(section: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that ``train.optim_g`` names over ``parameters``; ``fused`` unless the section says otherwise.

    Raises:
        OptionError: no optimiser of that name.
    """
    kind = section["type"]
    if kind not in OPTIMIZERS:
        raise OptionError(
            f"optimiser {kind!r} is not known.{did_you_mean(kind, OPTIMIZERS)} Known: {', '.join(OPTIMIZERS)}."
        )
    arguments = {key: value for key, value in section.items() if key != "type"}
    if "foreach" not in arguments and "fused" in inspect.signature(OPTIMIZERS[kind]).parameters:
        arguments.setdefault("fused", True)
    return OPTIMIZERS[kind](parameters, **arguments)
