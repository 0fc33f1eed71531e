"""Resume from a ``.state`` file of BasicSR or of the published SAFMN code.

Only the first start needs it: the run then writes checkpoints in its own format.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safmn import weights
from safmn.errors import CheckpointError, WeightsError, first_line
from safmn.options.types import NETWORK_KEYS

if TYPE_CHECKING:
    from safmn.training.trainer import Trainer

logger = logging.getLogger(__name__)

_NAMES = "path.resume_state must name such a file, or one of the folders in training_states"
_TELLING = {"betas", "momentum", "matrix_lr_ratio"}  # group keys that distinguish the states of Adam, SGD and Muon


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = weights.load_plain(path)
        return {"iter": int(state["iter"]), "optimizers": list(state["optimizers"])}
    except WeightsError as error:
        raise CheckpointError(f"{error} It is not a training state of BasicSR. {_NAMES}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a training state of BasicSR ({type(error).__name__}: {first_line(error):.200}). {_NAMES}"
        ) from error


def newest(training_states: Path, networks: Collection[str]) -> tuple[int, Path] | None:
    """Return iteration and path of the newest ``.state`` file of BasicSR whose weights are there; None without any.

    Args:
        training_states: ``experiments/<name>/training_states``.
        networks: names of the networks that the run trains, such as ``net_g``.

    Raises:
        CheckpointError: there are such files, but the weights of all of them are missing.
    """
    found = sorted(_by_iteration(training_states), reverse=True)
    missing: list[Path] = []
    for iteration, path in found:
        absent = [source for name in networks if not (source := _weights(path, name, iteration)).is_file()]
        if not absent:
            for other in missing:
                logger.warning("%s is not used: %s is missing", other, _weights(other, "net_g", int(float(other.stem))))
            return iteration, path
        missing.append(path)
    if missing:
        raise CheckpointError(
            f"{missing[0]} is a training state of BasicSR, but the weights of its iteration are missing: "
            f"{_weights(missing[0], 'net_g', found[0][0])}. Put them there, or move the .state files away to start at "
            "iteration 0"
        )
    return None


def _by_iteration(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("*.state") if folder.is_dir() else ():
        with contextlib.suppress(ValueError):  # a name that is no number is not BasicSR's
            yield int(float(path.stem)), path


def _weights(state: Path, network: str, iteration: int) -> Path:
    """Return the file in which BasicSR saves a network together with a state."""
    return state.parent.parent / "models" / f"{network}_{iteration}.pth"


def _kind(groups: Any) -> set[str]:
    """Return the keys of parameter groups that identify the kind of optimiser."""
    return {key for group in groups for key in group} & _TELLING


def resume(trainer: Trainer, path: Path) -> None:
    """Load the iteration and the optimisers from ``path``, and the weights from ``../models/net_*_<iteration>.pth``.

    The learning rate follows from the iteration. BasicSR saves neither the random states nor the position in the epoch.
    So the run continues with the exact weights, but with other samples than the interrupted run would have used.

    Raises:
        CheckpointError: the state or its weights cannot be read, or they do not match the networks.
    """
    state = _read(path)
    networks = trainer.model.networks
    if len(state["optimizers"]) != len(networks):
        raise CheckpointError(f"{path} has {len(state['optimizers'])} optimisers, this model has {len(networks)}")
    for (name, network), optimizer in zip(networks.items(), state["optimizers"], strict=True):
        source = _weights(path, name, state["iter"])
        if not source.is_file():
            raise CheckpointError(f"{path} needs the weights of the same iteration: {source} is missing")
        weights.load_into(network.bare, source, param_key="params")
        if network.average:
            weights.load_into(network.average.network, source, param_key="params_ema")
        try:
            alike = _kind(optimizer["param_groups"]) == _kind(network.optimizer.param_groups)
            if alike:  # torch would also load the state of another kind, and fail or ignore it in the first step
                network.load_optimizer(optimizer)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: the optimiser of {name} does not fit this network ({type(error).__name__}: {error})"
            ) from error
        if not alike:
            key, kind = NETWORK_KEYS[name].optimiser, type(network.optimizer).__name__
            raise CheckpointError(
                f"{path}: the optimiser of {name} was of another kind than train.{key}, {kind}. "
                f"Set the former kind, or start from the weights alone (path.{NETWORK_KEYS[name].weights})"
            )
    trainer.progress.iteration = trainer.progress.validated_at = state["iter"]
    logger.warning(
        "resumed from %s, iteration %d: weights and optimiser are exact, the order of samples is not (this format does "
        "not contain it). From the next checkpoint on, resuming is exact.",
        *(path, state["iter"]),
    )
