"""Choose the implementation of the network for ``train.kernels: auto``: native kernels, or torch's operations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from safmn.archs import SAFMN
from safmn.data.stages import patch_sizes, stages_of
from safmn.errors import first_line
from safmn.kernels.checks import WINDOW
from safmn.kernels.cpu.build import can_load
from safmn.kernels.cpu.compilation import how_to_get_a_compiler
from safmn.kernels.cpu.training import kernel_error, kernels_for
from safmn.options import Options
from safmn.registry import ARCH_REGISTRY, build, find
from safmn.runtime.distributed import on_all_ranks
from safmn.training.checkpoint import Checkpointer, peek
from safmn.training.experiment import Experiment

KERNELS = "train.kernels"
"""Key of the fingerprint of the implementation. Another one gives other digits."""
_LARGEST_ERROR = 1e-3
"""Largest relative error (of norms) of output and gradients, with a margin; rounding gives 1e-6 to 1e-5."""
_BEGAN = "this run began without them"
_LEAST_USE = 0.7
"""The kernels compute whole groups of samples. If a smaller share of a group is used, torch is as fast or faster."""


class Choice(NamedTuple):
    """The implementation, and why, for the log."""

    kernels: Literal["torch", "native"]
    reason: str


def choose_kernels(options: Options, device: torch.device, *, began_with: str | None = None) -> Choice:
    """Return the implementation for ``train.kernels: auto``; all ranks call this and get the same one.

    On a CPU it is native where the kernels apply, if their output and gradients agree with torch's. On a GPU it is
    torch's, because the native kernels were measured there only within a CUDA graph.

    Args:
        began_with: the implementation with which a run that is resumed began. It continues with the same one.
    """
    reason, error = _BEGAN if began_with == "torch" else _why_not(options, device), 0.0
    if reason is None:
        smallest = min(stage.batch_size for stage in stages_of(options.datasets["train"]))
        reason, error = _checked(options.network_g, smallest)
    reasons = [each for each in on_all_ranks(reason) if each is not None]
    if not reasons:
        return Choice("native", f"which agree with torch to {max(error, 1e-7):.0e}")
    kind = find(ARCH_REGISTRY, options.network_g["type"])
    return Choice("torch", f"no native kernels: {reasons[0]}" if kind is SAFMN and device.type == "cpu" else "")


def _why_not(options: Options, device: torch.device) -> str | None:
    """Return why the kernels do not apply; None if they do."""
    train, data = options.train, options.datasets.get("train")
    assert train is not None
    if device.type != "cpu" or find(ARCH_REGISTRY, options.network_g["type"]) is not SAFMN:
        return "they are for SAFMN on a CPU"
    if train.precision not in (None, "fp32") or train.compile:
        return "they compute in fp32 and without compile"
    sides = [None] if data is None else patch_sizes(data)
    if any(side is None or side % (WINDOW * options.scale) for side in sides):
        return f"they need a gt_size that is a multiple of {WINDOW} * scale"
    if not can_load():
        return f"they need a C++ compiler: {how_to_get_a_compiler()}"
    return None


def _checked(section: Mapping[str, Any], batch: int) -> tuple[str | None, float]:
    """Return why the kernels are not used for a batch (None if they are), and their error."""
    try:
        lanes = kernels_for(batch).lanes
    except OSError as failure:
        return first_line(failure), 0.0
    if batch < _LEAST_USE * lanes * -(-batch // lanes):
        return f"they compute {lanes} samples at once, and the batch has {batch}", 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network: nn.Module = build(ARCH_REGISTRY, section)
        except Exception as mistake:  # the run builds this network next, and reports the mistake with its place
            return first_line(mistake), 0.0
    error = kernel_error(network)
    return (None if error <= _LARGEST_ERROR else f"they are {error:.1e} off on this machine; please report it"), error


def kernels_of_checkpoint(options: Options, *, auto_resume: bool) -> str | None:
    """Return the implementation with which the run that will be resumed began; None if none will be.

    Runs from before ``auto`` was the default have no record of it: it is what their options say, or torch's.
    """
    folders: list[Path] = []
    if auto_resume:
        checkpointer = Checkpointer(Experiment.of(options).training_states)
        folders = [checkpointer.path(iteration) for iteration in reversed(checkpointer.iterations())]
    source = options.path.resume_state
    if not folders and source is not None and os.path.isdir(source):
        folders = [Path(source)]
    states = (peek(folder) for folder in folders)  # the newest may be damaged
    return next((began_with(state["progress"], state["options"]) for state in states if state is not None), None)


def began_with(progress: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return the implementation that a checkpoint's run uses, from the checkpoint's progress and options."""
    recorded = progress.get("fingerprints", {}).get(KERNELS)
    given = (options.get("train") or {}).get("kernels")
    return str(recorded or (given if given in ("torch", "native") else "torch"))
