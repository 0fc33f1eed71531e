"""Resume a run: find the checkpoint, check that nothing which affects the weights has changed, and load it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safmn.errors import CheckpointError, OptionError
from safmn.options import Options, differences
from safmn.options.datasets import PATHS
from safmn.runtime import distributed
from safmn.system.files import set_aside
from safmn.training import basicsr_state, identity
from safmn.training.checkpoint import Checkpoint
from safmn.training.checkpoint import load as load_checkpoint
from safmn.training.experiment import Experiment
from safmn.training.kernel_choice import KERNELS, began_with
from safmn.training.trainer import Trainer

logger = logging.getLogger(__name__)

THREADS = "threads of the CPU"
"""Key of the fingerprint of the thread count. A change of this fingerprint only affects rounding."""
# Keys that may change when a run is resumed, since they do not affect the weights. The data behind paths is compared by
# fingerprints.
_HARMLESS = (
    "name",
    "num_gpu",
    "path",
    "val",
    "logger",
    "dist_params",
    "expect",
    "sanity",
    "train.total_iter",
    KERNELS,  # what it led to is a fingerprint
    "train.teacher.weights",
    "train.perceptual_opt.vgg_weights",
    "train.on_nonfinite",
    "train.max_skips",
)
_HARMLESS_IN_TRAINING_SET = ("name", "num_worker_per_gpu", "io_backend", "check_source", "device", *PATHS)


def resume(trainer: Trainer, options: Options, *, auto_resume: bool, allow_changes: bool) -> None:
    """Load the state that the run continues from, if there is one, and set later checkpoints aside.

    Args:
        auto_resume: use the newest intact checkpoint of the experiment, or BasicSR's ``.state`` file there if that is
            newer; without any, ``path.resume_state``.
        allow_changes: resume even if options that affect the weights have changed.

    Raises:
        CheckpointError: the checkpoint is damaged, belongs to other options, or differs between ranks.
        OptionError: ``path.resume_state`` does not exist.
    """
    checkpointer, is_main = trainer.saver.checkpointer, trainer.model.ranks.is_main
    if is_main:
        checkpointer.tidy()
    distributed.barrier()
    checkpoint, source, theirs = None, options.path.resume_state, None
    if auto_resume:
        theirs = basicsr_state.newest(checkpointer.folder, trainer.model.networks)
        checkpoint = checkpointer.load_latest()
        if checkpoint is not None and theirs is not None and theirs[0] > checkpoint.iteration:
            checkpoint = None  # BasicSR trained on from it
        _check_ranks_agree(checkpoint.iteration if checkpoint else theirs[0] if theirs else 0, trainer.experiment)
    is_newest = checkpoint is not None or theirs is not None
    if checkpoint is None and theirs is not None:
        basicsr_state.resume(trainer, theirs[1])
    elif checkpoint is None and source is not None:
        check_source(options)
        if Path(source).is_dir():
            checkpoint = load_checkpoint(Path(source))
        else:
            basicsr_state.resume(trainer, Path(source))
    elif checkpoint is None and auto_resume:
        logger.info("nothing to resume in %s: starting at iteration 0", trainer.experiment.training_states)
    if checkpoint is not None:
        _check_unchanged(checkpoint, options, trainer, allow_changes=allow_changes)
        trainer.resume(checkpoint)
        logger.info("resumed from %s, iteration %d", checkpoint.path, checkpoint.iteration)
    if is_main:
        inside = source is not None and Path(source).resolve().parent == checkpointer.folder.resolve()
        foreign = not is_newest and source is not None and (Path(source).is_file() or not inside)
        checkpointer.set_aside_after(
            trainer.progress.iteration, "damaged" if is_newest else "superseded", foreign=foreign
        )
        if foreign and trainer.experiment.record.exists():
            logger.warning("the record of another run is kept as %s", set_aside(trainer.experiment.record))


def _check_ranks_agree(iteration: int, experiment: Experiment) -> None:
    """Check that every rank found the same checkpoint; ranks at different iterations would deadlock."""
    found = distributed.on_all_ranks(iteration)
    if len(set(found)) > 1:
        raise CheckpointError(
            f"the ranks do not see the same checkpoints in {experiment.training_states}: they would resume from "
            f"iterations {', '.join(map(str, found))} (in order of rank). path.experiments_root must be on a file "
            "system that all nodes share."
        )


def _check_unchanged(checkpoint: Checkpoint, options: Options, trainer: Trainer, *, allow_changes: bool) -> None:
    """Log every option that changed since the checkpoint.

    Raises:
        CheckpointError: one of them affects the weights, and ``allow_changes`` is false.
    """
    harmless, decisive = changed_keys(checkpoint.options, options.raw)
    saved = {KERNELS: began_with(checkpoint.progress, checkpoint.options)}
    saved |= checkpoint.progress.get("fingerprints", {})  # older checkpoints have none, or not all
    fingerprints = trainer.fingerprints
    if identity.is_compared(saved):  # then the content of the imported files is compared, not where they are
        moved = [line for line in decisive if line.startswith("imports: ")]
        harmless, decisive = harmless + moved, [line for line in decisive if line not in moved]
    changed = {key: f"{key}: {saved[key]} -> {now}" for key, now in fingerprints.items() if saved.get(key, now) != now}
    threads = changed.pop(THREADS, None)
    decisive += changed.values()
    if threads:
        logger.warning(
            "%s: another number of threads rounds sums differently, so the last digits differ from an uninterrupted "
            "run's",
            threads,
        )
    for line in harmless:
        logger.info("option changed since the checkpoint: %s", line)
    for line in decisive:
        logger.warning("option changed since the checkpoint: %s", line)
    if decisive and not allow_changes:
        raise CheckpointError(
            f"{options.source} differs from the options of {checkpoint.path} in keys that affect the weights:\n  "
            + "\n  ".join(decisive)
            + "\nUse the old values, or --allow-changes to continue with the new ones."
            + identity.advice_on(changed, options, trainer.experiment)
        )


def changed_keys(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Compare the options of a checkpoint with the current ones.

    Returns:
        The differences that do not affect the weights, and those that do; one line for each key.
    """
    harmless: list[str] = []
    decisive: list[str] = []
    for key, old, new in differences(saved, current):
        line = f"{key}: {old!r} -> {new!r}"
        parts = key.split(".")
        in_dataset = parts[0] == "datasets" and (parts[1] != "train" or parts[2] in _HARMLESS_IN_TRAINING_SET)
        free = in_dataset or any(key == name or key.startswith(name + ".") for name in _HARMLESS)
        (harmless if free else decisive).append(line)
    return harmless, decisive


def check_source(options: Options) -> None:
    """Check that ``path.resume_state`` exists.

    Raises:
        OptionError: it does not.
    """
    source = options.path.resume_state
    if source is not None and not Path(source).exists():
        raise OptionError(f"{options.source}: path.resume_state: there is no file or folder {source}")


def source_in(experiment: Experiment, options: Options) -> bool:
    """Return whether ``path.resume_state`` is in the experiment's own folder, as a .state file of BasicSR may be."""
    source = options.path.resume_state
    return source is not None and experiment.root.resolve() in Path(source).resolve().parents
