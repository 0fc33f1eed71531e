"""Build a trainer that is ready to run from checked options."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from safmn.data import TrainingLoader, build_dataset
from safmn.data.progressive import ProgressiveLoader
from safmn.data.stages import stages_of
from safmn.errors import DataError, OptionError, UserError
from safmn.evaluation.scoring import check_first_pair
from safmn.imports import log_imports
from safmn.options import Options, dump
from safmn.own_code import described, is_from_own_code
from safmn.prepare.hints import absence
from safmn.registry import ARCH_REGISTRY, MODEL_REGISTRY, find
from safmn.runtime import distributed
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution, apply_global_settings, choose_device, choose_execution
from safmn.runtime.random_state import seed_everything
from safmn.training.checkpoint import Checkpointer
from safmn.training.experiment import Experiment, HeldLog, environment, start_logging
from safmn.training.identity import code_fingerprints, write_identity
from safmn.training.kernel_choice import KERNELS, choose_kernels, kernels_of_checkpoint
from safmn.training.models import Model
from safmn.training.models.base_model import training_section
from safmn.training.models.teacher import is_excepted
from safmn.training.resuming import THREADS, check_source, resume, source_in
from safmn.training.sanity import check_training
from safmn.training.saving import Saver
from safmn.training.trainer import Trainer
from safmn.training.validation import Validator

logger = logging.getLogger(__name__)

_TAKE_CHANNELS_LAST = ("UNetDiscriminatorSN",)  # networks of BasicSR that channels_last does not slow down


def prepare_execution(options: Options, ranks: Ranks, *, began_with: str | None = None) -> Execution:
    """Choose the device, precision and kernels of this process and apply torch's global settings.

    Args:
        began_with: the kernels with which a run that is resumed began.

    Raises:
        OptionError: ``num_gpu`` needs more processes, or ``cuda_graph`` is set with more than one process.
    """
    train = training_section(options)
    device = choose_device(options.num_gpu, ranks.local_rank)
    gpus = options.num_gpu
    if device.type == "cuda" and gpus > 1 and not ranks.distributed and torch.cuda.device_count() > 1:
        raise OptionError(
            f"num_gpu is {gpus}, but this is a single process: start one process for each GPU with "
            f"`torchrun --nproc_per_node {gpus} safmn/train.py -opt {options.source}`"
        )
    if ranks.distributed and device.type not in ("cpu", "cuda"):
        raise OptionError(
            f"{options.source}: several processes train together on CUDA GPUs or on CPUs, not on {device.type}: start "
            "one process, or set num_gpu: 0"
        )
    kernels, about = train.kernels, ""
    if kernels == "auto":
        kernels, about = choose_kernels(options, device, began_with=began_with)
    execution = choose_execution(
        device,
        precision=train.precision,
        compile=train.compile,
        kernels=kernels,
        channels_last=_channels_last(options),
        deterministic=options.deterministic,
        cuda_graph=train.cuda_graph,
        about_kernels=about,
    )
    if execution.cuda_graph and ranks.distributed:
        raise OptionError("train.cuda_graph: true works with one process only; remove it, or train on one GPU")
    apply_global_settings(execution)
    return execution


def _channels_last(options: Options) -> bool | None:
    """Return the option file's ``channels_last``. If the file has none, return False or None.

    False: a network may not support channels_last. Networks of other packages may call ``view``, which fails in this
    format, as in BasicSR's ``VGGStyleDiscriminator``. None: :func:`choose_execution` chooses.
    """
    given = training_section(options).channels_last
    sections = [section for section in (options.network_g, options.network_d) if section is not None]
    kinds = [find(ARCH_REGISTRY, section["type"]) for section in sections]
    tried = all(kind.__module__.startswith("safmn.") or kind.__name__ in _TAKE_CHANNELS_LAST for kind in kinds)
    return False if given is None and not tried else given


def _build_dataset(section: Mapping[str, Any], options: Options, *, phase: str) -> Any:
    """Build a data set; if its files are missing, name the command that gets them.

    Raises:
        DataError, OptionError: see :func:`safmn.data.build_dataset`.
    """
    try:
        return build_dataset(section, phase=phase, scale=options.scale, seed=options.manual_seed)
    except (UserError, OSError) as error:
        if absent := absence(section):
            raise DataError(f"data set {section.get('name', section['type'])!r} is missing: {absent}") from error
        raise


def build_loader(options: Options, execution: Execution, ranks: Ranks) -> TrainingLoader | ProgressiveLoader:
    """Return the endless loader of the ``train`` data set.

    Raises:
        OptionError: the section is missing, or the data set is smaller than one batch.
    """
    section = options.datasets.get("train")
    if section is None:
        raise OptionError(f"{options.source}: datasets.train is missing")
    dataset = _build_dataset(section, options, phase="train")
    arguments: dict[str, Any] = {
        "seed": options.manual_seed,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "accumulate": training_section(options).accumulate,
        "enlarge_ratio": section.get("dataset_enlarge_ratio", 1),
        "num_workers": section.get("num_worker_per_gpu", 0),
        "pin_memory": execution.device.type == "cuda",
        "augmentations": section.get("augmentations") or (),
    }
    loader: TrainingLoader | ProgressiveLoader
    if section.get("iters"):
        loader = ProgressiveLoader(dataset, stages_of(section), **arguments)
    else:
        loader = TrainingLoader(dataset, batch_size=section["batch_size_per_gpu"], **arguments)
    logger.info("training data: %s images, %s iterations per epoch", len(dataset), loader.iterations_per_epoch)
    return loader


def _validation_sets(options: Options) -> dict[str, Any]:
    sections = {key: section for key, section in options.datasets.items() if key.split("_")[0] == "val"}
    if options.val is None:
        return {}
    sets = {
        section.get("name", key): _build_dataset(section, options, phase="val") for key, section in sections.items()
    }
    for name, dataset in sets.items():
        check_first_pair(dataset, name, options.scale)
    return sets


@contextlib.contextmanager
def _experiment(
    options: Options, *, resuming: bool, ranks: Ranks, console: logging.Handler | None
) -> Iterator[Experiment]:
    """Lock the experiment's folder for this run. Set up its log file after the block has succeeded.

    The block builds everything that can fail. A new run renames the folder of an older run only after the block.
    Therefore a mistake in the option file does not change the older run's folder.
    """
    experiment = Experiment.of(options)
    start_logging(None, is_main=ranks.is_main, console=console)
    if not ranks.is_main:
        yield experiment
    else:
        experiment.lock()
        try:
            experiment.tidy()
            log = HeldLog()
            for key, value in environment().items():
                logger.info("%s: %s", key, value)
            log_imports()
            logger.info("options of %s:\n%s", options.source, dump(options))
            yield experiment
            nothing_left = not experiment.has_checkpoints() and any(experiment.models.glob("*.pth"))
            if not resuming or (nothing_left and not source_in(experiment, options)):
                check_source(options)
                experiment.archive()
        except BaseException as error:
            if isinstance(error, Exception) and is_from_own_code(error):  # the log gets its traceback
                log.write_to(experiment.log_of_failed_start(options.name))
            experiment.unlock()
            raise
        log.write_to(experiment.root / f"train_{options.name}.log")
    distributed.barrier()


def _build_model(options: Options, execution: Execution, ranks: Ranks) -> Model:
    """Build the model of an option file.

    Raises:
        UserError: something in the file does not fit the model, or the constructor of a user's model fails.
    """
    try:
        model: Model = find(MODEL_REGISTRY, options.model_type)(options, execution, ranks, **options.model)
    except (UserError, OSError):
        raise
    except Exception as error:
        if not is_from_own_code(error):
            raise
        raise OptionError(f"{options.source}: {options.model_type} cannot be built: {described(error)}") from error
    return model


def _fingerprint(dataset: Any) -> str:
    """Return the number of images of a training set, and hashes of the names in order and of the patch weights."""
    names = dataset.image_names() if hasattr(dataset, "image_names") else None
    digest = "" if names is None else f", names {hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:16]}"
    draws = getattr(dataset, "draws_digest", "")
    return f"{len(dataset)} images{digest}" + (f", weights {draws[:16]}" if draws else "")


def _check_exceptions(options: Options, dataset: Any) -> None:
    """Check that ``train.teacher.except_images`` matches at least one training image; else it is misspelt."""
    teacher = training_section(options).teacher
    if teacher is None or teacher.except_images is None or not hasattr(dataset, "image_names"):
        return
    names = dataset.image_names()
    count = sum(is_excepted(name, teacher.except_images) for name in names)
    if not count:
        raise OptionError(
            f"{options.source}: train.teacher.except_images: {teacher.except_images!r} matches no training image; "
            f"the first one is {names[0]!r}"
        )
    logger.info("teacher: %d of %d images match %s", count, len(names), teacher.except_images)


def build_trainer(
    options: Options,
    ranks: Ranks,
    *,
    auto_resume: bool = False,
    allow_changes: bool = False,
    console: logging.Handler | None = None,
) -> Trainer:
    """Build the trainer of an option file, and resume from a checkpoint if requested.

    Args:
        ranks: this process's place in the job.
        auto_resume: resume from the newest intact checkpoint of the experiment, if it has one. Otherwise
            ``path.resume_state`` is used, if it is set.
        allow_changes: resume even if options that affect the weights have changed.
        console: takes the log lines in place of the console.

    Raises:
        UserError: the option file and the data, or a checkpoint, do not match; nothing was trained or overwritten.
    """
    given = Path(options.source).read_bytes()  # it may be in a folder that is renamed below
    began_with = kernels_of_checkpoint(options, auto_resume=auto_resume)
    execution = prepare_execution(options, ranks, began_with=began_with)
    resuming = auto_resume or bool(options.path.resume_state)
    with _experiment(options, resuming=resuming, ranks=ranks, console=console) as experiment:
        logger.info("computing on %s", execution.describe())
        loader = build_loader(options, execution, ranks)
        _check_exceptions(options, loader.keyed.dataset)
        validator = Validator(options, _validation_sets(options), experiment)
        goes_on = resuming and (bool(options.path.resume_state) or experiment.has_checkpoints())
        if options.sanity and not any(distributed.on_all_ranks(goes_on)):
            check_training(
                options,
                execution,
                ranks,
                loader,
                validator.datasets,
                build_model=_build_model,
                build_dataset=lambda section: _build_dataset(section, options, phase=section["phase"]),
            )
        seed_everything(options.manual_seed)
        model = _build_model(options, execution, ranks)
        fingerprints = {"datasets.train": _fingerprint(loader.keyed.dataset), **model.fingerprints()}
        fingerprints |= code_fingerprints(options)
        fingerprints["global batch (batch_size_per_gpu x processes x accumulate)"] = str(loader.global_batch)
        fingerprints[KERNELS] = execution.kernels
        if execution.device.type == "cpu":
            fingerprints[THREADS] = str(torch.get_num_threads())
    checkpointer = Checkpointer(
        experiment.training_states, keep_last=options.logger.keep_last, keep_every=options.logger.keep_every
    )
    saver = Saver(options, model, validator, experiment, checkpointer)
    trainer = Trainer(options, model, loader, validator, experiment, saver, fingerprints)
    resume(trainer, options, auto_resume=auto_resume, allow_changes=allow_changes)
    if ranks.is_main:
        write_identity(options, experiment, given)
    return trainer
