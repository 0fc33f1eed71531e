"""Check what the types of single keys cannot express: whether the keys and sections of an option file fit together."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from safmn import registry
from safmn.degradations import parse_options
from safmn.degradations.keys import DegradationKeys, PublishedKeys
from safmn.errors import OptionError, did_you_mean
from safmn.imaging.file_names import folder_mistake
from safmn.optim.named_weights import NamedWeights
from safmn.options import components
from safmn.options.datasets import check_dataset, degrades, degrades_any
from safmn.options.losses import LossEntry, given_losses, loss_entries
from safmn.options.problems import KeyPath, Problems
from safmn.options.progressive import check_stages
from safmn.options.typed import is_whole, show, to_struct, to_type
from safmn.options.types import OptionFile, TrainSection

PHASES = ("train", "val", "test")
_SCALE_ARGUMENTS = ("upscaling_factor", "upscale", "upsampling", "scale")  # names of the scale in networks
_FOR_PAIRS = ("gt_usm", "l1_gt_usm", "percep_gt_usm", "gan_gt_usm", "high_order_degradation", "gt_size")
_GAN_ONLY = ("optim_d", "net_d_iters", "net_d_init_iters")
_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(TrainSection)}


def phase_of(name: str) -> str:
    """Return the phase of a data set section: ``val`` for ``val_2``."""
    return name.split("_")[0]


class _UnknownModel:
    """Attributes assumed for a model that does not declare them; see :class:`safmn.training.models.Model`."""

    degrades = False
    implied_degradation: ClassVar[Mapping[str, Any]] = {}
    has_discriminator = None
    takes_teacher = False


def _model(file: OptionFile) -> Any:
    """Return the file's model class for its attributes, or :class:`_UnknownModel`.

    Unknown models, BasicSR's models and classes that are not derived from ours do not declare these attributes.
    """
    known = file.model_type in components.models()
    found = registry.find(registry.MODEL_REGISTRY, file.model_type) if known else None
    return found if hasattr(found, "implied_degradation") else _UnknownModel


def _model_may_be_imported(file: OptionFile, problems: Problems) -> bool:
    """Return whether the file's model is unknown now, but may be registered by ``imports`` later."""
    return problems.names_may_come and file.model_type not in components.models()


def _given(data: Mapping[str, Any]) -> list[str]:
    """Return Real-ESRGAN's keys at the top level of a file that are not null."""
    return [key for key in PublishedKeys.__struct_fields__ if data.get(key) is not None]


def degradation_keys(file: OptionFile, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the degradation's keys: the model's implied ones, those at the top level and those in ``degradation``.

    Later ones take precedence.
    """
    implied = _model(file).implied_degradation
    given = {key: getattr(file, key) for key in _given(data)}
    return {**implied, **given, **file.degradation}


def check_components(data: Mapping[str, Any], mode: str, problems: Problems) -> None:
    """Check the sections of all components. This uses the plain data, so it works even if other sections are wrong."""
    components.check_model(data.get("model_type"), data.get("model"), ("model_type",), problems)
    for name in ("network_g", "network_d"):
        if data.get(name) is not None:
            signature = components.check_network(data[name], (name,), problems)
            if name == "network_g" and signature is not None:
                _check_scale(data, signature, problems)
    train = data.get("train")
    if isinstance(train, Mapping):
        _check_losses(train, problems)
        for name in ("optim_g", "optim_d"):
            if train.get(name) is not None:
                components.check_optimiser(train[name], ("train", name), problems)
        if train.get("scheduler") is not None:
            components.check_scheduler(train["scheduler"], ("train", "scheduler"), problems)
    if isinstance(data.get("datasets"), Mapping):
        _check_datasets(data, mode, problems)
    _check_metrics(data, problems)


def _check_losses(train: Mapping[str, Any], problems: Problems) -> None:
    entries = {entry.where: entry for entry in loss_entries(train)}
    for where, given in given_losses(train):
        components.check_loss(entries.get(where), given, where, problems)


def _check_scale(data: Mapping[str, Any], signature: Any, problems: Problems) -> None:
    section, scale = data["network_g"], data.get("scale")
    fixed = getattr(registry.find(registry.ARCH_REGISTRY, section["type"]), "FIXED_SCALE", None)
    if fixed is not None:
        if is_whole(scale) and scale != fixed:
            problems.add(("scale",), f"is {scale}, but {section['type']} is for scale {fixed}")
        return
    for key in _SCALE_ARGUMENTS:
        if key in signature.hints:
            given = section.get(key, components.default_of(signature, key))
            if is_whole(given) and is_whole(scale) and scale >= 1 and given != scale:
                how = "" if key in section else " (its default)"
                problems.add(("network_g", key), f"is {given}{how}, but the top-level `scale` is {scale}")
            return


def _check_datasets(data: Mapping[str, Any], mode: str, problems: Problems) -> None:
    for name, section in data["datasets"].items():
        where = ("datasets", name)
        phase = phase_of(name)
        if phase not in PHASES:
            problems.add(where, f"the name of a data set section must start with {' or '.join(PHASES)}, got {name!r}")
            continue
        if phase == "train" and name != "train":
            problems.add(where, "only one training set is possible; it must be called 'train'")
        if phase == "test" and mode == "train":
            problems.add(where, "test sets are not used in training; call it 'val' or 'val_2' to validate on it")
        if isinstance(section, Mapping):
            check_dataset(section, where, phase, problems, top=data)
            for key, wanted in (("scale", data.get("scale")), ("phase", phase)):
                if key in section and section[key] != wanted:
                    problems.add((*where, key), f"is {show(section[key])}, but must be {show(wanted)}; leave it out")


def _check_metrics(data: Mapping[str, Any], problems: Problems) -> None:
    val = data.get("val")
    metrics = val.get("metrics") if isinstance(val, Mapping) else None
    if not isinstance(metrics, Mapping):
        return
    sets = data.get("datasets")
    sets = sets if isinstance(sets, Mapping) else {}
    measured = {name: each for name, each in sets.items() if phase_of(name) != "train" and isinstance(each, Mapping)}
    without = [name for name, each in measured.items() if _without_gt(each)]
    for name, section in metrics.items():
        where = ("val", "metrics", name)
        if not isinstance(section, Mapping) or not components.check_metric(section, where, problems):
            continue
        if without and len(without) == len(measured):  # if another set has GT images, it is measured on that alone
            problems.add(where, f"compares with GT images, which datasets.{without[0]} does not have")


def _without_gt(section: Mapping[str, Any]) -> bool:
    return section.get("type") == "SingleImageDataset"


def check_sense(file: OptionFile, data: Mapping[str, Any], mode: str, problems: Problems) -> None:
    """Check whether the sections of a file fit together and fit the mode."""
    mistake = folder_mistake(file.name)
    if mistake:
        problems.add(("name",), mistake)
    if file.val is not None and file.val.suffix and (mistake := folder_mistake(file.val.suffix)):
        problems.add(("val", "suffix"), mistake)
    if file.use_static_graph:
        problems.warn(("use_static_graph",), "has no effect: DistributedDataParallel's static_graph is not used")
    if file.auto_resume:
        problems.warn(("auto_resume",), "has no effect in a file, as in BasicSR: give --auto_resume to the command")
    if mode == "train":
        if file.train is None:
            problems.add((), "the section 'train' is missing; is this a file for testing?")
        else:
            _check_training(file, file.train, problems)
        if "train" not in file.datasets:
            problems.add(("datasets",), "the section 'train' is missing: there is no data to train on")
    elif mode == "test" and not any(phase_of(name) in ("val", "test") for name in file.datasets):
        problems.add(("datasets",), "there is no data set to test on; add a section 'test_1'")
    _check_gt_size(file, problems)
    check_stages(file, problems)
    _check_validation(file, mode, problems)
    _check_expectations(file, problems)
    if mode == "train":
        _check_trackers(file, problems)
    if file.path.ignore_resume_networks:
        problems.add(("path", "ignore_resume_networks"), "is not supported yet; set it to ~")
    _check_degradation(file, data, mode, problems)


def _check_trackers(file: OptionFile, problems: Problems) -> None:
    """Check that the package of each tracker that the file asks for is installed."""
    section = file.logger
    wanted: list[tuple[KeyPath, object, str]] = [
        (("logger", "use_tb_logger"), section.use_tb_logger, "tensorboard"),
        (("logger", "wandb", "project"), section.wandb.project, "wandb"),
        (("logger", "mlflow", "experiment"), section.mlflow.experiment, "mlflow"),
    ]
    for where, value, package in wanted:
        if value and importlib.util.find_spec(package) is None:
            off = "false" if value is True else "~"
            problems.add(where, f"needs the package {package}: pip install {package}; or set it to {off}")


def _check_training(file: OptionFile, train: TrainSection, problems: Problems) -> None:
    entries = loss_entries(msgspec.structs.asdict(train))
    if not entries:
        problems.add(("train",), "no loss is given; add one to losses: [{type: L1Loss}]")
    if train.ldl_opt and train.artifacts_opt:
        problems.add(("train", "artifacts_opt"), "is the same loss as ldl_opt; give only one of them")
    if any(entry.role == "artefact" for entry in entries) and not train.ema_decay:
        problems.add(
            ("train", "ema_decay"), "is 0, but the artefact loss needs the EMA of the weights; set it to 0.999"
        )
    for key in ("teacher", "flat_areas"):
        if (
            getattr(train, key) is not None
            and not _model(file).takes_teacher
            and not _model_may_be_imported(file, problems)
        ):
            problems.add(("train", key), f"is not supported by {file.model_type}, only by SRModel and RealSRModel")
    if train.weights_by_name and train.cuda_graph:
        problems.add(("train", "weights_by_name"), "does not work with cuda_graph; remove one of them")
    for index, section in enumerate(train.weights_by_name):
        to_struct(NamedWeights, section, ("train", "weights_by_name", index), problems)
    _check_schedule(train, problems)
    _check_discriminator(file, train, entries, problems)


def _check_discriminator(
    file: OptionFile, train: TrainSection, entries: Sequence[LossEntry], problems: Problems
) -> None:
    has_discriminator = _model(file).has_discriminator
    if has_discriminator:
        if file.network_d is None:
            problems.add((), f"the section 'network_d' is missing; {file.model_type} trains a discriminator")
        given = {"optim_d": train.optim_d, "gan_opt": any(entry.role == "adversarial" for entry in entries)}
        for name, value in given.items():
            if not value:
                problems.add(("train",), f"the key {name!r} is missing; {file.model_type} trains a discriminator")
    elif has_discriminator is False:
        idle: list[KeyPath] = [("train", name) for name in _GAN_ONLY if getattr(train, name) != _DEFAULTS[name]]
        idle += [entry.where for entry in entries if entry.role != "image"]
        alone = file.network_d is None and len(idle) == 1
        for where in idle:
            note = problems.warn if alone and where[-1] == "optim_d" else problems.add  # in files of HAT and DRCT
            note(where, f"has no effect: {file.model_type} has no discriminator")
        if file.network_d is not None:
            problems.add(("network_d",), f"has no effect: {file.model_type} has no discriminator")


def _check_schedule(train: TrainSection, problems: Problems) -> None:
    where = ("train", "scheduler")
    section = train.scheduler
    weights = section.get("restart_weights", [1])
    if section.get("type") == "TrueCosineAnnealingLR":
        return
    key = "periods" if str(section.get("type")).startswith("CosineAnnealingRestart") else "restarts"
    steps = section.get(key, [0])
    if isinstance(steps, list) and isinstance(weights, list) and len(steps) != len(weights):
        problems.add(where, f"{key} has {len(steps)} items, restart_weights {len(weights)}; they must be equally many")
    periods = section.get("periods")
    if isinstance(periods, list) and all(_is_number(period) for period in periods):
        total = sum(periods)
        if total < train.total_iter:
            problems.warn(
                (*where, "periods"),
                f"end at {total:g}; the learning rate stays at eta_min until total_iter, {train.total_iter}",
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _check_gt_size(file: OptionFile, problems: Problems) -> None:
    for name, section in file.datasets.items():
        size = section.get("gt_size")
        if phase_of(name) == "train" and isinstance(size, int) and size % file.scale:
            problems.add(("datasets", name, "gt_size"), f"{size} is not a multiple of the scale, {file.scale}")
        if phase_of(name) == "train" and None not in (size, file.gt_size) and size != file.gt_size:
            problems.add(("datasets", name, "gt_size"), f"is {show(size)}, but the top-level gt_size is {file.gt_size}")
    if file.gt_size is not None and file.gt_size % file.scale:
        problems.add(("gt_size",), f"{file.gt_size} is not a multiple of the scale, {file.scale}")


def _check_validation(file: OptionFile, mode: str, problems: Problems) -> None:
    if mode == "network":
        return
    wanted = ("val",) if mode == "train" else ("val", "test")
    sets = [name for name in file.datasets if phase_of(name) in wanted]
    if file.val is not None and file.val.metrics and not sets:
        problems.add(("val", "metrics"), f"there is no {' or '.join(wanted)} set in datasets to measure them on")
    if file.val is None and sets and mode == "train":
        problems.warn(("datasets", sets[0]), "is not used: the file has no section 'val'")
    names: dict[str, str] = {}
    for name in sets:
        title = file.datasets[name].get("name")
        if isinstance(title, str) and names.setdefault(title, name) != name:
            problems.add(("datasets", name, "name"), f"{title!r} is also the name of datasets.{names[title]}")


def _check_degradation(file: OptionFile, data: Mapping[str, Any], mode: str, problems: Problems) -> None:
    given = _given(data)
    for key in file.degradation:
        if key in given:
            problems.add(("degradation", key), "is also given at the top level; give it only once")
    if _model_may_be_imported(file, problems):
        return
    if not _model(file).degrades:
        for key in (*given, *(["degradation"] if file.degradation else [])):
            problems.add((key,), f"has no effect: {file.model_type} does not degrade images")
        return
    known = {field.encode_name: field.type for field in msgspec.structs.fields(DegradationKeys)}
    for key, value in file.degradation.items():
        if key in known:
            to_type(known[key], value, ("degradation", key), problems, whole_floats=False)
        else:
            problems.unknown(("degradation", key), f"unknown key.{did_you_mean(key, known)}", value)
    values = degradation_keys(file, data)
    _warn_of_pairs(file, given, problems)
    if len(problems):
        return
    for name, section in file.datasets.items():
        phase = phase_of(name)
        if degrades(section.get("type")) and (phase != "train" or mode == "train"):
            try:
                parse_options(values, {**section, "phase": phase}, scale=file.scale, where=f"datasets.{name}")
            except OptionError as error:
                _note_degradation(str(error), file, problems)


def _warn_of_pairs(file: OptionFile, given: list[str], problems: Problems) -> None:
    """Warn of degradation keys that have no effect because the training set does not degrade images.

    Keys such as ``gt_usm``, which sharpen the GT, also work for such sets. They give no warning.
    """
    section = file.datasets.get("train", {})
    kind = section.get("type")
    if kind is None or degrades_any(section):
        return
    for key in (*given, *(["degradation"] if file.degradation else [])):
        if key not in _FOR_PAIRS:
            problems.warn((key,), f"has no effect on the training set: {kind} does not degrade images")


def _note_degradation(error: str, file: OptionFile, problems: Problems) -> None:
    """Note an error of ``parse_options``: its message begins with the key, perhaps without ``degradation.``."""
    key, _, message = error.partition(": ")
    where = ("degradation", key) if key in file.degradation else tuple(key.split("."))
    problems.add(where if message else (), message or error)


def _check_expectations(file: OptionFile, problems: Problems) -> None:
    titles = [section.get("name") for section in file.datasets.values()]
    metrics = file.val.metrics if file.val is not None else {}
    for title, numbers in file.expect.items():
        where = ("expect", title)
        if title not in titles:
            problems.add(where, f"no data set is called {title!r}; known: {', '.join(sorted(map(str, titles)))}")
        for key, value in numbers.items():
            if key == "tolerance":
                continue
            if key not in metrics:
                problems.add((*where, key), f"is not a metric in val.metrics; known: {', '.join(metrics) or 'none'}")
            if isinstance(value, bool) or not _is_number(value):
                problems.add((*where, key), f"expected a number, got {show(value)}")
        _check_tolerance(numbers, where, problems)


def _check_tolerance(numbers: Mapping[str, Any], where: tuple[str, ...], problems: Problems) -> None:
    values = [key for key in numbers if key != "tolerance"]
    if not values:
        problems.add(where, "names no metric, so there is nothing to compare")
        return
    if "tolerance" not in numbers:
        problems.add(where, "the key 'tolerance' is missing: a number, or one for each metric")
        return
    tolerance = numbers["tolerance"]
    each = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(values, tolerance)
    for key in values:
        if key not in each:
            problems.add((*where, "tolerance"), f"the key {key!r} is missing")
    for key, value in each.items():
        path = (*where, "tolerance", key) if isinstance(tolerance, Mapping) else (*where, "tolerance")
        if key not in values:
            problems.add(path, f"unknown key: no value of {key!r} is expected")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            problems.add(path, f"expected a number, at least 0, got {show(value)}")
