"""Turn errors of torch, a network or a loss in a training step into an OptionError that explains the mistake."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from safmn.data.workers import is_death
from safmn.errors import OptionError, UserError
from safmn.own_code import described
from safmn.runtime.agreement import explain_lost_ranks
from safmn.system.memory import OUT_OF_MEMORY, is_out_of_memory

_BUGS = (AttributeError, NameError, ImportError, SyntaxError)


@contextlib.contextmanager
def explained_step(source: object, batches: Sequence[Mapping[str, Any]], *, is_first: bool) -> Iterator[None]:
    """Context for one training step.

    Args:
        source: the option file, for messages.
        batches: the step's micro-batches.
        is_first: whether this is the run's first step. An error in it then means that network, losses and data do not
            fit together, unless it has a known cause, such as a missing file, full memory or a dead loader worker.
    """
    fits = _explain_misfit(source, batches) if is_first else contextlib.nullcontext()
    with fits, _explain_torch(), explain_lost_ranks():
        yield


@contextlib.contextmanager
def _explain_torch() -> Iterator[None]:
    """Raise an OptionError for torch's errors about a setting that does not fit the network."""
    try:
        yield
    except RuntimeError as error:
        if "Expected to have finished reduction in the prior iteration" in str(error):  # of DistributedDataParallel
            raise OptionError(
                "some weights of the network take no part in its loss; set find_unused_parameters: true"
            ) from error
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise OptionError(
            f"deterministic: true: {str(error).split(',')[0]}. Give patches whose LR side is a multiple of the "
            "network's window (8 for SAFMN: gt_size a multiple of 8 * scale), which need no adaptive pooling, or leave "
            "deterministic out."
        ) from error


@contextlib.contextmanager
def _explain_misfit(source: object, batches: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Raise an OptionError for any error of a first step: network, losses and data do not fit together."""
    try:
        yield
    except (UserError, OSError, *OUT_OF_MEMORY):
        raise
    except Exception as error:  # networks and losses may come from users and raise anything
        if is_out_of_memory(error) or is_death(error):
            raise
        advice = "\n    Try train.channels_last: false" if "view size is not compatible" in str(error) else ""
        shapes = {key: tuple(value.shape) for key, value in batches[0].items() if torch.is_tensor(value)}
        if isinstance(error, _BUGS):  # it has nothing to do with the shapes
            raise OptionError(f"{source}: the first training step failed: {described(error)}") from error
        raise OptionError(
            f"{source}: the first training step failed: network, losses and data do not fit together. Batch: "
            f"{', '.join(f'{key} {shape}' for key, shape in shapes.items())}. {described(error)}{advice}"
        ) from error
