"""Checking networks, losses, metrics, optimisers, schedulers and data sets against what they accept, building none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from msgspec import Meta, Struct

from safmn import registry
from safmn.errors import OptionError, did_you_mean
from safmn.options.problems import KeyPath, Problems
from safmn.options.signatures import REQUIRED, Signature, option_keys, signature_of
from safmn.options.typed import show, to_type
from safmn.options.types import NotNegative, Positive

OPTIMISERS: dict[str, Callable[..., Any]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "SGD": torch.optim.SGD,
}
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
}
LOSSES = ("pixel_opt", "fft_opt", "perceptual_opt", "gan_opt", "ldl_opt", "artifacts_opt")

# Types of arguments that the constructors themselves do not state.
_SCHEDULER_HINTS: dict[str, Any] = {
    "milestones": list[NotNegative],
    "gamma": Annotated[float, Meta(gt=0)],
    "restarts": list[NotNegative],
    "restart_weights": list[Annotated[float, Meta(gt=0)]],
    "periods": Annotated[list[Positive], Meta(min_length=1)],
    "eta_min": Annotated[float, Meta(ge=0)],
}
_OPTIMISER_HINTS: dict[str, Any] = {
    "lr": Annotated[float, Meta(gt=0)],
    "weight_decay": Annotated[float, Meta(ge=0)],
    "betas": tuple[Annotated[float, Meta(ge=0, lt=1)], Annotated[float, Meta(ge=0, lt=1)]],
    "momentum": Annotated[float, Meta(ge=0)],
    "eps": Annotated[float, Meta(ge=0)],
}


class LoaderOptions(Struct, frozen=True, kw_only=True):
    """Keys of a data set section that the loader reads, not the data set.

    Attributes:
        batch_size_per_gpu: samples per micro-batch and process.
        num_worker_per_gpu: loader processes per training process; 0: load in the training process.
        dataset_enlarge_ratio: an epoch goes this many times through the files.
    """

    batch_size_per_gpu: Positive
    num_worker_per_gpu: NotNegative = 0
    dataset_enlarge_ratio: Positive = 1


# Keys that BasicSR's option files carry and that do nothing here, with the reason, which is logged.
_LOADER_WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "use_shuffle": (bool, "has no effect: training data is always shuffled (BasicSR ignores this key too)"),
    "prefetch_mode": (Literal["cpu", "cuda"] | None, "has no effect: the loader always prefetches"),
    "num_prefetch_queue": (Positive, "has no effect: the loader sizes its own queue"),
    "pin_memory": (bool, "has no effect: memory is pinned where the device is a CUDA one"),
    "persistent_workers": (bool, "has no effect: loader workers always live as long as the run"),
}
_QUIET = {"use_shuffle": True, "prefetch_mode": None}  # values that say what happens anyway
_UNREAD: dict[str, str] = {
    "filename_tmpl": "has no effect: this data set has no pairs of files to match",
    "meta_info_file": "has no effect: this data set does not read it",
    "gt_size": "has no effect here: the crop is that of the top-level gt_size",
}
_TRAINING_ONLY = ("use_hflip", "use_rot", "gt_size", *_LOADER_WITHOUT_EFFECT, *LoaderOptions.__struct_fields__)


class DatasetKeys(Struct, frozen=True, kw_only=True):
    """Types of the keys that data sets share. Which of them a data set takes is its own matter."""

    name: str
    type: str
    dataroot_gt: str | None = None
    dataroot_lq: str | None = None
    meta_info: str | None = None
    meta_info_file: str | None = None
    filename_tmpl: str = "{}"
    gt_size: Positive | None = None
    use_hflip: bool = False
    use_rot: bool = False
    color: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    blur_kernel_size: Positive = 21
    kernel_list: list[str] = []
    kernel_prob: list[float] = []
    sinc_prob: float = 0.0
    blur_sigma: list[float] = []
    betag_range: list[float] = []
    betap_range: list[float] = []
    blur_kernel_size2: Positive = 21
    kernel_list2: list[str] = []
    kernel_prob2: list[float] = []
    sinc_prob2: float = 0.0
    blur_sigma2: list[float] = []
    betag_range2: list[float] = []
    betap_range2: list[float] = []
    final_sinc_prob: float = 0.0


class IoBackend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How files are read: from folders, or from lmdb (with lmdb's own switches)."""

    type: Literal["disk", "lmdb"]
    readonly: bool = True
    lock: bool = False
    readahead: bool = False


@lru_cache(maxsize=256)
def _signature(component: Callable[..., Any], without: tuple[str, ...]) -> Signature:
    return signature_of(component, without)


def check_network(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> Signature | None:
    """Check ``network_g`` or ``network_d``; returns the constructor's signature where the network is known."""
    return _check(section, _finder(registry.ARCH_REGISTRY), where, problems)


def check_loss(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> None:
    """Check one of ``train.*_opt``."""
    _check(section, _finder(registry.LOSS_REGISTRY), where, problems)


def check_metric(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> bool:
    """Check one of ``val.metrics``. Returns whether the metric compares with a GT image."""
    rest = dict(section)
    if "better" in rest:
        to_type(Literal["higher", "lower"], rest.pop("better"), (*where, "better"), problems)
    find = _finder(registry.METRIC_REGISTRY)
    _check(rest, find, where, problems, without=("img", "img2"), extra=("better",))
    component = find(section["type"]) if isinstance(section.get("type"), str) and _found(find, section) else None
    return component is not None and "img2" in _signature(component, ()).required


def check_optimiser(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> None:
    """Check ``train.optim_g`` or ``train.optim_d``."""
    _check(section, _among(OPTIMISERS, "optimiser"), where, problems, without=("params",), hints=_OPTIMISER_HINTS)
    if "type" in section and "lr" not in section:
        problems.add(where, "the key 'lr' is missing")


def check_scheduler(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> None:
    """Check ``train.scheduler``."""
    _check(
        section,
        _among(SCHEDULERS, "scheduler"),
        where,
        problems,
        without=("optimizer", "last_epoch"),
        hints=_SCHEDULER_HINTS,
    )


def _finder(kind: registry.Registry) -> Callable[[str], Callable[..., Any]]:
    return lambda name: registry.find(kind, name)


def _among(known: Mapping[str, Callable[..., Any]], kind: str) -> Callable[[str], Callable[..., Any]]:
    def find(name: str) -> Callable[..., Any]:
        if name not in known:
            raise OptionError(f"no {kind} named {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
        return known[name]

    return find


def _found(find: Callable[[str], Callable[..., Any]], section: Mapping[str, Any]) -> bool:
    try:
        find(section["type"])
    except OptionError:
        return False
    return True


def _component(
    section: Any, find: Callable[[str], Callable[..., Any]], where: KeyPath, problems: Problems
) -> Callable[..., Any] | None:
    """What the ``type`` of a section names."""
    if not isinstance(section, Mapping):
        problems.add(where, f"expected a section with a `type`, got {show(section)}")
        return None
    if "type" not in section:
        problems.add(where, "the key 'type' is missing")
        return None
    if not isinstance(section["type"], str):
        problems.add((*where, "type"), f"expected a name, got {show(section['type'])}")
        return None
    try:
        return find(section["type"])
    except OptionError as error:
        problems.add((*where, "type"), str(error))
        return None


def _check(
    section: Mapping[str, Any],
    find: Callable[[str], Callable[..., Any]],
    where: KeyPath,
    problems: Problems,
    *,
    without: tuple[str, ...] = (),
    hints: Mapping[str, Any] | None = None,
    extra: Iterable[str] = (),
) -> Signature | None:
    component = _component(section, find, where, problems)
    if component is None:
        return None
    signature = _signature(component, without)
    name = section["type"]
    for key, value in section.items():
        if key == "type":
            continue
        if key in signature.hints:
            to_type((hints or {}).get(key, signature.hints[key]), value, (*where, key), problems)
        elif not signature.is_open:
            known = [*signature.hints, *extra]
            problems.add((*where, key), f"{name} has no argument {key!r}.{did_you_mean(key, known)}")
    for key in signature.required:
        if key not in section:
            problems.add(where, f"{name} needs {key!r}, which is missing")
    return signature


def check_dataset(section: Any, where: KeyPath, phase: str, problems: Problems) -> None:
    """Check one section of ``datasets``: the data set's own keys, and for training the loader's."""
    kind = _component(section, _finder(registry.DATASET_REGISTRY), where, problems)
    if kind is None:
        return
    for key in ("name", *(("batch_size_per_gpu",) if phase == "train" else ())):
        if key not in section:
            problems.add(where, f"the key {key!r} is missing")
    types = {field.name: field.type for field in msgspec.structs.fields(DatasetKeys)}
    loader = {field.name: field.type for field in msgspec.structs.fields(LoaderOptions)}
    own, required, is_open = _own_keys(kind, types)
    for key in required:
        if key not in section:
            problems.add(where, f"{section['type']} needs {key!r}, which is missing")
    for key, value in section.items():
        path = (*where, key)
        if key in ("phase", "scale"):
            continue  # filled in, and compared, by the loader of the file
        if key in own and phase != "train" and key in _TRAINING_ONLY:
            problems.warn(path, "has no effect: only training data is cropped and flipped")
            to_type(own[key], value, path, problems)
        elif key in own or key in ("name", "type"):
            to_type(own.get(key, types.get(key, Any)), value, path, problems)
        elif key in _LOADER_WITHOUT_EFFECT:
            hint, reason = _LOADER_WITHOUT_EFFECT[key]
            to_type(hint, value, path, problems)
            if key not in _QUIET or value != _QUIET[key]:
                problems.warn(path, reason)
        elif key in loader:
            to_type(loader[key], value, path, problems)
            if phase != "train":
                problems.warn(path, "has no effect: it belongs to training data")
        elif key in _UNREAD:
            to_type(types[key], value, path, problems)
            problems.warn(path, _UNREAD[key])
        elif is_open:
            problems.warn(path, f"cannot be checked: {section['type']} does not show which keys it reads")
        else:
            known = {*own, *loader, *_LOADER_WITHOUT_EFFECT, "name", "type"}
            problems.add(path, f"{section['type']} reads no key {key!r}.{did_you_mean(key, known)}")


def _own_keys(kind: Any, types: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], bool]:
    """The keys of a data set class with their types, those it needs, and whether there may be more.

    A class may declare them as ``OPTIONS``, a msgspec Struct; otherwise they are read from its source.
    """
    declared = getattr(kind, "OPTIONS", None)
    if declared is not None:
        fields = msgspec.structs.fields(declared)
        required = [field.encode_name for field in fields if field.required and field.encode_name != "type"]
        return {field.encode_name: field.type for field in fields}, required, False
    keys = option_keys(kind)
    own = {name: IoBackend if name == "io_backend" else types.get(name, Any) for name in keys.names}
    return own, [], keys.is_open


def default_of(signature: Signature, key: str) -> Any:
    """The default of an argument, or None where there is none."""
    default = signature.defaults.get(key)
    return None if default is REQUIRED else default
