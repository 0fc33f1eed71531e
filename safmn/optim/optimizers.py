"""Build optimisers by name, with torch's fused implementation if the optimiser has one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from safmn.errors import OptionError, did_you_mean
from safmn.optim.muon import Muon
from safmn.own_code import described
from safmn.registry import OPTIMIZER_REGISTRY, find, known_names, names
from safmn.value_types import Decay, NotNegativeFloat, PositiveFloat

OPTIMIZER_REGISTRY.register(Muon)
DOCUMENTED: dict[str, type[torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Muon": Muon,
    "SGD": torch.optim.SGD,
}
"""The optimisers that the reference lists. Others are found by :func:`find_optimizer`."""
_UNFIT = {
    "LBFGS": "evaluates the loss several times in a step, which the training loop does not do",
    "SparseAdam": "needs sparse gradients, which images do not give",
    "Optimizer": "is the base class of optimisers",
}
# The values that torch's optimisers accept. Their signatures are less precise.
TORCH_ARGUMENTS: dict[str, Any] = {
    "lr": PositiveFloat,
    "weight_decay": NotNegativeFloat,
    "betas": tuple[Decay, Decay],
    "momentum": NotNegativeFloat,
    "eps": NotNegativeFloat,
}
_FUSED_BY = ("torch.", "safmn.")
_GRAPHED = ("Adam", "AdamW", "Muon")  # a CUDA graph can record these
_NUMBERS: dict[str, Callable[[Any], Any]] = {"lr": float, "steps": int}  # change from step to step


def find_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """Return the optimiser of this name: ours or a user's, torch's, or that of the optional package pytorch_optimizer.

    Raises:
        OptionError: there is none, or the training loop cannot use it.
    """
    if name in names(OPTIMIZER_REGISTRY):
        return find(OPTIMIZER_REGISTRY, name)  # type: ignore[return-value]
    if name in _UNFIT:
        raise OptionError(f"the optimiser {name} {_UNFIT[name]}. Known: {', '.join(known_optimizers())}.")
    kind = getattr(torch.optim, name, None)
    if not _is_optimizer(kind) and importlib.util.find_spec("pytorch_optimizer") is not None:
        kind = getattr(importlib.import_module("pytorch_optimizer"), name, None)
    if not _is_optimizer(kind):
        more = (
            ""
            if importlib.util.find_spec("pytorch_optimizer") is not None
            else " The package pytorch-optimizer has many more: pip install 'pytorch-optimizer>=3.5'."
        )
        known = known_optimizers()
        raise OptionError(f"no optimiser named {name!r}.{did_you_mean(name, known)} {known_names(known)}{more}")
    if hasattr(kind, "train") and hasattr(kind, "eval"):
        raise OptionError(
            f"the optimiser {name} keeps other weights for training than for use (schedule-free), which the training "
            "loop does not do; train.ema_decay averages the weights of any optimiser"
        )
    return kind  # type: ignore[return-value]


def _is_optimizer(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer


def known_optimizers() -> list[str]:
    """Return the names of all optimisers except those of pytorch_optimizer."""
    of_torch = [name for name in dir(torch.optim) if _is_optimizer(getattr(torch.optim, name)) and name not in _UNFIT]
    return sorted({*names(OPTIMIZER_REGISTRY), *of_torch})


def value_types(kind: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """Return the types of an optimiser's arguments where they are more precise than in its signature."""
    return TORCH_ARGUMENTS if kind.__module__.startswith("torch.") else {}


def build_optimizer(
    section: Mapping[str, Any],
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    graph_on: torch.device | None = None,
) -> torch.optim.Optimizer:
    """Return the optimiser that ``section`` (``train.optim_g``) describes; ``fused`` by default.

    Args:
        section: the optimiser's name (``type``) and its arguments.
        parameters: the parameters to optimise, or groups of them as torch's optimisers take them.
        graph_on: the device on which a CUDA graph will record the step, or None. The learning rate then becomes a
            tensor on that device.

    Raises:
        OptionError: the name is unknown, a CUDA graph cannot record this optimiser, or torch rejects the arguments.
    """
    kind = section["type"]
    optimizer = find_optimizer(kind)
    arguments = {key: value for key, value in section.items() if key != "type"}
    if (
        not arguments.get("differentiable")
        and "foreach" not in arguments
        and optimizer.__module__.startswith(_FUSED_BY)
        and "fused" in inspect.signature(optimizer).parameters
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
        built = optimizer(parameters, **arguments)
    except Exception as error:  # torch rejects a value or a combination of values; a user's optimiser raises anything
        written = {key: value for key, value in section.items() if key != "type"}
        raise OptionError(f"the optimiser {kind} cannot be built from {written}: {described(error)}") from error
    if not isinstance(built, torch.optim.Optimizer):
        raise OptionError(f"{kind} gives a {type(built).__name__}, not a torch.optim.Optimizer")
    return built


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
