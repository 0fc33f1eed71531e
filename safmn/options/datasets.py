"""Checking the sections of ``datasets``: a data set's own keys, and for training the loader's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from safmn import registry
from safmn.errors import OptionError, did_you_mean
from safmn.imaging.file_names import folder_mistake, template_mistake
from safmn.options.components import check_value, find_component, finder
from safmn.options.problems import KeyPath, Problems
from safmn.options.signatures import option_keys
from safmn.options.typed import struct_defaults
from safmn.value_types import NotNegative, Positive, PositiveFloat

PATHS = ("dataroot", "dataroot_gt", "dataroot_lq", "meta_info", "meta_info_file")  # where ``~`` is the home folder


class LoaderOptions(Struct, frozen=True, kw_only=True):
    """Keys of the training set's section that the loader reads.

    Attributes:
        batch_size_per_gpu: Samples per micro-batch and process.
        num_worker_per_gpu: Loader processes for each training process; 0: load in the training process.
        dataset_enlarge_ratio: How often an epoch goes through the files. With a fraction the first files of the list
            come more often than the others in every epoch, as in BasicSR.
    """

    batch_size_per_gpu: Positive
    num_worker_per_gpu: NotNegative = 0
    dataset_enlarge_ratio: PositiveFloat = 1


class IoBackend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How BasicSR's data sets read files: from folders, or from lmdb (with lmdb's own switches)."""

    type: Literal["disk", "lmdb"]
    readonly: bool = True
    lock: bool = False
    readahead: bool = False


class DatasetKeys(Struct, frozen=True, kw_only=True):
    """Types of the keys that the data sets of BasicSR share. Which of them a data set takes, its source says."""

    name: str
    type: str
    dataroot_gt: str | None = None
    dataroot_lq: str | None = None
    meta_info: str | None = None
    meta_info_file: str | None = None
    filename_tmpl: str = "{}"
    io_backend: IoBackend = IoBackend(type="disk")
    gt_size: Positive | None = None
    use_hflip: bool = False
    use_rot: bool = False
    color: str | None = None
    mean: list[float] | None = None
    std: list[PositiveFloat] | None = None


class _Key(NamedTuple):
    """A key that a section may have: its type, and what to say where it does nothing (unless it has ``quiet``)."""

    hint: Any
    no_effect: str | None = None
    quiet: Any = msgspec.UNSET


def _types(kind: Any) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


_SHARED = _types(DatasetKeys)
_LOADER = {key: _Key(hint) for key, hint in _types(LoaderOptions).items()}
# Keys that BasicSR's option files carry and that do nothing here, each with the reason.
_LOADER_WITHOUT_EFFECT = {
    "use_shuffle": _Key(bool, "has no effect: training data is always shuffled (BasicSR ignores this key too)", True),
    "prefetch_mode": _Key(Literal["cpu", "cuda"] | None, "has no effect: the loader always prefetches", None),
    "num_prefetch_queue": _Key(Positive, "has no effect: the loader sizes its own queue"),
    "pin_memory": _Key(bool, "has no effect: memory is pinned where the device is a CUDA one"),
    "persistent_workers": _Key(bool, "has no effect: loader workers always live as long as the run", True),
}
WITHOUT_EFFECT = frozenset(_LOADER_WITHOUT_EFFECT)
_UNREAD = {
    "filename_tmpl": _Key(str, "has no effect: this data set has no pairs of files to match"),
    "meta_info_file": _Key(str | None, "has no effect: this data set does not read it"),
    "gt_size": _Key(Positive),  # of a real-world set: the same as the top-level gt_size, which the rules check
}
_CROP = ("gt_size", "use_hflip", "use_rot")


def check_dataset(
    section: Mapping[str, Any], where: KeyPath, phase: str, problems: Problems, *, top: Mapping[str, Any]
) -> None:
    """Check the section of one data set; ``top`` is the whole file, whose ``gt_size`` stands for one in the section."""
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
            check_value(known.hint, value, path, problems)
            if known.no_effect and (known.quiet is msgspec.UNSET or value != known.quiet):
                problems.warn(path, known.no_effect)
        elif is_open:
            problems.warn(path, f"cannot be checked: {section['type']} does not show which keys it reads")
        else:
            problems.add(path, f"{section['type']} reads no key {key!r}.{did_you_mean(key, accepted)}")


def idle_keys() -> dict[str, str]:
    """Keys of the training set's section that BasicSR's files carry and that do nothing here, each with the reason."""
    return {name: key.no_effect or "" for name, key in _LOADER_WITHOUT_EFFECT.items()}


def degrades(kind: Any) -> bool:
    """Whether the data set of this name makes its LQ images, and so gets the options of the degradation."""
    known = isinstance(kind, str) and kind in registry.names(registry.DATASET_REGISTRY)
    return known and getattr(registry.find(registry.DATASET_REGISTRY, kind), "degrades", False) is True


def degrades_any(section: Mapping[str, Any]) -> bool:
    """Whether the data set of a section, or one of the ``parts`` that it mixes, makes its LQ images."""
    parts = section.get("parts")
    kinds = [part.get("type") for part in parts.values() if isinstance(part, dict)] if isinstance(parts, dict) else []
    return any(map(degrades, (section.get("type"), *kinds)))


def defaults_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the keys of one data set's section; of the loader's alone where its type is not registered."""
    try:
        kind = registry.find(registry.DATASET_REGISTRY, section["type"])
    except (KeyError, OptionError):
        return struct_defaults(LoaderOptions)
    return struct_defaults(LoaderOptions) | struct_defaults(getattr(kind, "OPTIONS", DatasetKeys))


def _check_required(
    section: Mapping[str, Any], where: KeyPath, required: list[str], phase: str, problems: Problems
) -> None:
    wanted = ["name", *required, *(["batch_size_per_gpu"] if phase == "train" else [])]
    for key in dict.fromkeys(wanted):
        if key not in section:
            problems.add(where, f"the key {key!r} is missing")


def _check_values(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> None:
    """Check what the types of the keys do not say; values of other types are left to the check of types."""
    for key, mistake in (("name", folder_mistake), ("filename_tmpl", template_mistake)):
        value = section.get(key)
        found = mistake(value) if isinstance(value, str) else None
        if found:
            problems.add((*where, key), found)
    channels = 1 if section.get("color") == "y" else 3
    for key in ("mean", "std"):
        values = section.get(key)
        if isinstance(values, list) and len(values) != channels:
            problems.add((*where, key), f"expected one value for each channel, {channels}, got {len(values)}")


def _accepted(own: Mapping[str, Any], phase: str) -> dict[str, _Key]:
    """Every key that a section may have, given the data set's own."""
    loader = _LOADER | _LOADER_WITHOUT_EFFECT
    keys = {key: _Key(hint) for key, hint in own.items()}
    if phase != "train":
        loader = {key: _Key(known.hint, "has no effect: it belongs to training data") for key, known in loader.items()}
        keys |= {key: _Key(own[key], "has no effect: only training data is cropped") for key in _CROP if key in own}
    filled_in = {"phase": _Key(Any), "scale": _Key(Any)}  # the rules compare them with what they must be
    return _UNREAD | loader | {"name": _Key(str), "type": _Key(str)} | keys | filled_in


def own_keys(kind: Any) -> tuple[dict[str, Any], list[str], bool]:
    """The keys of a data set class with their types, those it needs, and whether there may be more.

    A class may declare them as ``OPTIONS``, a msgspec Struct; otherwise they are read from its source.
    """
    declared = getattr(kind, "OPTIONS", None)
    if declared is not None:
        fields = msgspec.structs.fields(declared)
        return _types(declared), [field.encode_name for field in fields if field.required], False
    keys = option_keys(kind)
    return {name: _SHARED.get(name, Any) for name in keys.names}, [], keys.is_open
