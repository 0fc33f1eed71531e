"""Whether the native kernels for inference can run a network on this machine."""

from __future__ import annotations

import torch
from torch import nn

from safmn.archs.stages import StageModule
from safmn.kernels.cpu.build import can_load
from safmn.kernels.cpu.compilation import how_to_get_a_compiler
from safmn.kernels.cpu.planning.planner import unsupported
from safmn.kernels.cpu.programs import PROGRAMS


def missing(device: torch.device) -> str | None:
    """Return why the kernels cannot be used on ``device``, and what to do; None if they can."""
    if device.type != "cpu":
        return f"the native kernels are for CPUs, not for {device.type}"
    return None if can_load() else f"the native kernels need a C++ compiler: {how_to_get_a_compiler()}"


def unfit(network: nn.Module) -> str | None:
    """Return why the kernels cannot run ``network``; None if they can, or if it is a stage, which may run eagerly."""
    if type(network) in PROGRAMS or isinstance(network, StageModule):
        return None
    problem = unsupported(network)
    return None if problem is None else f"there are no native kernels for {type(network).__name__}: {problem}"


def why_not(network: nn.Module, device: torch.device) -> str | None:
    """Return why the kernels cannot run ``network`` on ``device``; None if they can."""
    return unfit(network) or missing(device)
