"""Check the sections of ``datasets``: the keys of the data set and, for training, those of the loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from safmn import registry
from safmn.data.augmentations import parse as parse_augmentations
from safmn.errors import OptionError, did_you_mean
from safmn.imaging.file_names import folder_mistake, template_mistake
from safmn.options.components import check_value, find_component, finder
from safmn.options.keywords import takes_keywords
from safmn.options.problems import REMOVED, KeyPath, Problems
from safmn.options.signatures import REQUIRED, option_keys, signature_of
from safmn.options.typed import accepts_null, struct_defaults
from safmn.value_types import NotNegative, Positive, PositiveFloat

PATHS = (
    "dataroot",
    "dataroot_gt",
    "dataroot_lq",
    "meta_info",
    "meta_info_file",
    "patch_weights",
)  # a leading ``~`` is expanded


class LoaderOptions(Struct, frozen=True, kw_only=True):
    """Keys of the training set's section that the loader reads.

    Attributes:
        batch_size_per_gpu: Samples per micro-batch and process.
        num_worker_per_gpu: Loader processes for each training process; 0: load in the training process.
        dataset_enlarge_ratio: How often each file is used in an epoch. If the ratio is not an integer, the first files
            of the list are used more often than the others in every epoch, as in BasicSR.
        augmentations: A list of augmentations of the patches: ``type`` (``Blend``, ``RGBPermutation``, ``Cutout``,
            ``MixUp``, ``CutMix``, ``CutMixUp``, ``CutBlur``, ``OneOf``), ``prob`` and further keys; see recipes.md.
        iters: Progressive training: the number of iterations of each stage. The last stage lasts until the end.
        gt_sizes: Side of the GT patches in each stage; ``gt_size`` is the largest. Empty: ``gt_size``.
        mini_batch_sizes: Samples per micro-batch and process in each stage, at most ``batch_size_per_gpu``. Empty:
            ``batch_size_per_gpu``.
    """

    batch_size_per_gpu: Positive
    num_worker_per_gpu: NotNegative = 0
    dataset_enlarge_ratio: PositiveFloat = 1
    augmentations: list[dict[str, Any]] = []
    iters: list[Positive] = []
    gt_sizes: list[Positive] = []
    mini_batch_sizes: list[Positive] = []


class BasicSRIoBackend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How BasicSR's data sets read files: from folders (``disk``) or from lmdb, with the options of ``lmdb.open``."""

    type: Literal["disk", "lmdb"]
    readonly: bool = True
    lock: bool = False
    readahead: bool = False


class DatasetKeys(Struct, frozen=True, kw_only=True):
    """Types of the keys that BasicSR's data sets share. Which of them a data set reads is found in its source."""

    name: str
    type: str
    dataroot_gt: str | None = None
    dataroot_lq: str | None = None
    meta_info: str | None = None
    meta_info_file: str | None = None
    filename_tmpl: str = "{}"
    io_backend: BasicSRIoBackend = BasicSRIoBackend(type="disk")
    gt_size: Positive | None = None
    use_hflip: bool = False
    use_rot: bool = False
    color: str | None = None
    mean: list[float] | None = None
    std: list[PositiveFloat] | None = None


class _Key(NamedTuple):
    """A key that a section may have.

    Attributes:
        hint: its type.
        no_effect: the warning for a key without effect; None for other keys.
        quiet: the value for which the warning is left out.
    """

    hint: Any
    no_effect: str | None = None
    quiet: Any = msgspec.UNSET


def _types(kind: Any) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


_SHARED = _types(DatasetKeys)
_LOADER = {key: _Key(hint) for key, hint in _types(LoaderOptions).items()}
# Keys of BasicSR's option files that have no effect here, each with the reason.
_LOADER_WITHOUT_EFFECT = {
    "use_shuffle": _Key(bool, "has no effect: training data is always shuffled (BasicSR ignores this key too)", True),
    "prefetch_mode": _Key(Literal["cpu", "cuda"] | None, "has no effect: the loader always prefetches", None),
    "num_prefetch_queue": _Key(Positive, "has no effect: the loader sizes its own queue"),
    "pin_memory": _Key(bool, "has no effect: memory is pinned if the device is a CUDA device"),
    "persistent_workers": _Key(bool, "has no effect: loader workers always run until the end of training", True),
}
WITHOUT_EFFECT = frozenset(_LOADER_WITHOUT_EFFECT)
_UNREAD = {
    "filename_tmpl": _Key(str, "has no effect: this data set has no pairs of files to match"),
    "meta_info_file": _Key(str | None, "has no effect: this data set does not read it"),
    "gt_size": _Key(Positive),  # real-world sets may repeat the top-level gt_size; the rules check that it is equal
}
_FILLED_IN = ("name", "phase", "scale")  # passed to a constructor that has such arguments
_CROP = ("gt_size", "use_hflip", "use_rot")


def check_dataset(
    section: Mapping[str, Any], where: KeyPath, phase: str, problems: Problems, *, top: Mapping[str, Any]
) -> None:
    """Check the section of one data set. ``top`` is the whole file; its ``gt_size`` may replace the section's."""
    kind = find_component(section, finder(registry.DATASET_REGISTRY), where, problems)
    if kind is None:
        return
    own, required, is_open = own_keys(kind)
    _check_required(section, where, required, phase, problems)
    _check_values(section, where, problems)
    if phase == "train" and "gt_size" in own and section.get("gt_size") is None and top.get("gt_size") is None:
        problems.add(where, "the key 'gt_size' is missing: the side of the GT patches")
    accepted = _accepted(own, phase)
    for key, value in section.items():
        path = (*where, key)
        if key in accepted:
            known = accepted[key]
            if value is None and not accepts_null(known.hint) and key not in ("name", "type", *required):
                problems.edits[path] = REMOVED
                continue
            check_value(known.hint, value, path, problems)
            if known.no_effect and (known.quiet is msgspec.UNSET or value != known.quiet):
                problems.warn(path, known.no_effect)
        elif is_open:
            problems.warn(path, f"cannot be checked: it is unknown which keys {section['type']} reads")
        else:
            problems.unknown(path, f"{section['type']} has no key {key!r}.{did_you_mean(key, accepted)}", value)


def idle_keys() -> dict[str, str]:
    """Return the keys of the training set in BasicSR's files that have no effect here, each with the reason."""
    return {name: key.no_effect or "" for name, key in _LOADER_WITHOUT_EFFECT.items()}


def degrades(kind: Any) -> bool:
    """Return whether the data set of this name degrades GT images itself and so needs the degradation's options."""
    known = isinstance(kind, str) and kind in registry.names(registry.DATASET_REGISTRY)
    return known and getattr(registry.find(registry.DATASET_REGISTRY, kind), "degrades", False) is True


def degrades_any(section: Mapping[str, Any]) -> bool:
    """Return whether a section's data set, or one of the ``parts`` that it mixes, degrades GT images itself."""
    parts = section.get("parts")
    kinds = [part.get("type") for part in parts.values() if isinstance(part, dict)] if isinstance(parts, dict) else []
    return any(map(degrades, (section.get("type"), *kinds)))


def defaults_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a data set's keys and the loader's; only the loader's for an unknown ``type``."""
    try:
        kind = registry.find(registry.DATASET_REGISTRY, section["type"])
    except (KeyError, OptionError):
        return struct_defaults(LoaderOptions)
    if takes_keywords(kind):
        given = {key: value for key, value in signature_of(kind).defaults.items() if value is not REQUIRED}
        return struct_defaults(LoaderOptions) | given
    return struct_defaults(LoaderOptions) | struct_defaults(getattr(kind, "OPTIONS", DatasetKeys))


def _check_required(
    section: Mapping[str, Any], where: KeyPath, required: list[str], phase: str, problems: Problems
) -> None:
    wanted = ["name", *required, *(["batch_size_per_gpu"] if phase == "train" else [])]
    for key in dict.fromkeys(wanted):
        if key not in section:
            problems.add(where, f"the key {key!r} is missing")


def _check_values(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> None:
    """Check what types cannot express. Values of a wrong type are reported by the type check."""
    for key, mistake in (("name", folder_mistake), ("filename_tmpl", template_mistake)):
        value = section.get(key)
        found = mistake(value) if isinstance(value, str) else None
        if found:
            problems.add((*where, key), found)
    if isinstance(section.get("augmentations"), list):
        try:
            parse_augmentations(section["augmentations"])
        except OptionError as error:
            problems.add((*where, "augmentations"), str(error))
    channels = {"y": 1, "grey": 1, "rgba": 4}.get(str(section.get("color")), 3)
    for key in ("mean", "std"):
        values = section.get(key)
        if isinstance(values, list) and len(values) != channels:
            problems.add((*where, key), f"expected one value for each channel, {channels}, got {len(values)}")


def _accepted(own: Mapping[str, Any], phase: str) -> dict[str, _Key]:
    """Return all keys that a section may have; ``own`` are those of the data set."""
    loader = _LOADER | _LOADER_WITHOUT_EFFECT
    keys = {key: _Key(hint) for key, hint in own.items()}
    if phase != "train":
        loader = {key: _Key(known.hint, "has no effect: it belongs to training data") for key, known in loader.items()}
        keys |= {key: _Key(own[key], "has no effect: only training data is cropped") for key in _CROP if key in own}
    filled_in = {"phase": _Key(Any), "scale": _Key(Any)}  # the rules check their values
    return _UNREAD | loader | {"name": _Key(str), "type": _Key(str)} | keys | filled_in


def own_keys(kind: Any) -> tuple[dict[str, Any], list[str], bool]:
    """Return a data set class's keys with their types, the required keys, and whether it may read further keys.

    The keys come from the class attribute ``OPTIONS``, a msgspec Struct. Without it, they are the arguments of the
    constructor, or, if that takes a dict of options as in BasicSR, they are found in the class's source.
    """
    if takes_keywords(kind):
        signature = signature_of(kind, _FILLED_IN)
        return signature.hints, signature.required, signature.is_open
    declared = getattr(kind, "OPTIONS", None)
    if declared is not None:
        fields = msgspec.structs.fields(declared)
        return _types(declared), [field.encode_name for field in fields if field.required], False
    keys = option_keys(kind)
    return {name: _SHARED.get(name, Any) for name in keys.names}, [], keys.is_open
