"""Build optimisers by name, with torch's fused implementation if the optimiser has one."""

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
# The values that torch's optimisers accept. Their signatures are less precise.
TORCH_ARGUMENTS: dict[str, Any] = {
    "lr": PositiveFloat,
    "weight_decay": NotNegativeFloat,
    "betas": tuple[Decay, Decay],
    "momentum": NotNegativeFloat,
    "eps": NotNegativeFloat,
}
_GRAPHED = ("Adam", "AdamW", "Muon")  # a CUDA graph can record these
_NUMBERS: dict[str, Callable[[Any], Any]] = {"lr": float, "steps": int}  # change from step to step


def build_optimizer(
    section: Mapping[str, Any], parameters: Iterable[nn.Parameter], *, graph_on: torch.device | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser that ``section`` (``train.optim_g``) describes; ``fused`` by default.

    Args:
        section: the optimiser's name (``type``) and its arguments.
        parameters: the parameters to optimise.
        graph_on: the device on which a CUDA graph will record the step, or None. The learning rate then becomes a
            tensor on that device.

    Raises:
        OptionError: the name is unknown, a CUDA graph cannot record this optimiser, or torch rejects the arguments.
    """
    kind = section["type"]
    if kind not in OPTIMIZERS:
        raise OptionError(
            f"optimiser {kind!r} is unknown.{did_you_mean(kind, OPTIMIZERS)} Known: {', '.join(OPTIMIZERS)}."
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
                f"train.cuda_graph: true needs one of the optimisers {', '.join(_GRAPHED)} (torch's ones fused), not "
                f"{kind} as configured; change the optimiser or remove cuda_graph"
            )
        arguments["lr"] = _scalar(arguments.get("lr", 1e-3), graph_on)
        if kind != "Muon":
            arguments["capturable"] = True
    try:
        return OPTIMIZERS[kind](parameters, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:  # torch rejects a value or a combination of values
        written = {key: value for key, value in section.items() if key != "type"}
        raise OptionError(f"the optimiser {kind} cannot be built from {written}: {error}") from error


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state dict, with plain numbers in place of the scalars that a CUDA graph keeps on the device."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group.update({key: _NUMBERS[key](group[key]) for key in _NUMBERS if isinstance(group.get(key), Tensor)})
    return state


def groups_on(device: torch.device, optimizer: torch.optim.Optimizer) -> None:
    """Turn the numbers that change from step to step into scalars on ``device``: the reverse of :func:`state_of`."""
    for group in optimizer.param_groups:
        group.update({key: _scalar(group[key], device) for key in _NUMBERS if key in group})


def _scalar(value: Any, device: torch.device) -> Tensor:
    return torch.tensor(float(value), device=device)
