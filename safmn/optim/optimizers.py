"""Optimisers by name, with the fused implementation where torch has one for the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from safmn.errors import OptionError, did_you_mean
from safmn.optim.muon import Muon
from safmn.value_types import Decay, NotNegativeFloat, PositiveFloat

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Muon": Muon,
    "SGD": torch.optim.SGD,
}
# What torch's optimisers accept, more exactly than their signatures say it.
TORCH_ARGUMENTS: dict[str, Any] = {
    "lr": PositiveFloat,
    "weight_decay": NotNegativeFloat,
    "betas": tuple[Decay, Decay],
    "momentum": NotNegativeFloat,
    "eps": NotNegativeFloat,
}
_GRAPHED = ("Adam", "AdamW", "Muon")  # that can be recorded in a CUDA graph
_NUMBERS: dict[str, Callable[[Any], Any]] = {"lr": float, "steps": int}  # of a group, that change from step to step


def build_optimizer(
    section: Mapping[str, Any], parameters: Iterable[nn.Parameter], *, graph_on: torch.device | None = None
) -> torch.optim.Optimizer:
    """The optimiser that ``train.optim_g`` names over ``parameters``; ``fused`` unless the section says otherwise.

    Args:
        graph_on: the device where a CUDA graph will record the step; the learning rate then is a tensor there.

    Raises:
        OptionError: no optimiser of that name, or none that a CUDA graph can record; or torch refuses the arguments.
    """
    kind = section["type"]
    if kind not in OPTIMIZERS:
        raise OptionError(
            f"optimiser {kind!r} is not known.{did_you_mean(kind, OPTIMIZERS)} Known: {', '.join(OPTIMIZERS)}."
        )
    arguments = {key: value for key, value in section.items() if key != "type"}
    if (
        not arguments.get("differentiable")
        and "foreach" not in arguments
        and "fused" in inspect.signature(OPTIMIZERS[kind]).parameters
    ):
        arguments.setdefault("fused", True)
    if graph_on is not None:
        if kind not in _GRAPHED or not (kind == "Muon" or arguments.get("fused")):
            raise OptionError(
                f"train.cuda_graph: true needs one of the optimisers {', '.join(_GRAPHED)} (those of torch fused), not "
                f"{kind} as it stands there; change it, or leave cuda_graph out"
            )
        arguments["lr"] = _scalar(arguments.get("lr", 1e-3), graph_on)
        if kind != "Muon":
            arguments["capturable"] = True
    try:
        return OPTIMIZERS[kind](parameters, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:  # what torch finds wrong with the values, or together
        written = {key: value for key, value in section.items() if key != "type"}
        raise OptionError(f"the optimiser {kind} cannot be built from {written}: {error}") from error


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state dict, with numbers where a CUDA graph has scalars on the device."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group.update({key: _NUMBERS[key](group[key]) for key in _NUMBERS if isinstance(group.get(key), Tensor)})
    return state


def groups_on(device: torch.device, optimizer: torch.optim.Optimizer) -> None:
    """The other way round: what changes from step to step, in the optimiser itself, as scalars on the device."""
    for group in optimizer.param_groups:
        group.update({key: _scalar(group[key], device) for key in _NUMBERS if key in group})


def _scalar(value: Any, device: torch.device) -> Tensor:
    return torch.tensor(float(value), device=device)
