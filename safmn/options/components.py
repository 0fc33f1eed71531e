"""Check the sections of networks, losses, metrics, optimisers and schedulers against their signatures.

Nothing is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import msgspec

from safmn import registry
from safmn.errors import OptionError, did_you_mean
from safmn.optim.optimizers import OPTIMIZERS, TORCH_ARGUMENTS
from safmn.optim.schedules import SCHEDULES
from safmn.options.losses import PUBLISHED, EntryKeys, LossEntry, is_adversarial
from safmn.options.problems import KeyPath, Problems
from safmn.options.signatures import REQUIRED, Signature, signature_of
from safmn.options.typed import show, to_type
from safmn.value_types import NotNegative

# Arguments that BasicSR's metrics share. The framework passes (H, W, C) images, and slicing needs an integer border.
METRIC_ARGUMENTS: dict[str, Any] = {"crop_border": NotNegative, "input_order": Literal["HWC"]}
METRIC_IMAGES = ("img", "img2")  # the image and its GT, passed by the framework
_TENSOR_METRICS = ("calculate_psnr_pt", "calculate_ssim_pt")  # BasicSR's metrics for tensors instead of arrays

_LOSS_KEYS: dict[str, Any] = {field.encode_name: field.type for field in msgspec.structs.fields(EntryKeys)}


@lru_cache(maxsize=256)
def _signature(component: Callable[..., Any], without: tuple[str, ...]) -> Signature:
    return signature_of(component, without)


def models() -> list[str]:
    """Return the names of the models that SAFMN can train: all registered models except BasicSR's.

    BasicSR's models have a different interface.
    """
    kinds = {name: registry.find(registry.MODEL_REGISTRY, name) for name in registry.names(registry.MODEL_REGISTRY)}
    return [name for name, kind in kinds.items() if not kind.__module__.startswith("basicsr.")]


def metrics() -> dict[str, Callable[..., Any]]:
    """Return the metrics that take images as arrays, by name."""
    known = [name for name in registry.names(registry.METRIC_REGISTRY) if name not in _TENSOR_METRICS]
    return {name: registry.find(registry.METRIC_REGISTRY, name) for name in known}


def check_model(name: Any, mode: str, where: KeyPath, problems: Problems) -> None:
    """Check ``model_type``."""
    known = models()
    if not isinstance(name, str):
        return  # reported by the type check
    if name in known:
        try:
            inspect.signature(registry.find(registry.MODEL_REGISTRY, name)).bind("options", "execution", "ranks")
        except TypeError:
            problems.add(
                where, f"{name} has another constructor than SAFMN's models: subclass safmn.training.models.Model"
            )
        return
    if name in registry.names(registry.MODEL_REGISTRY):
        problems.add(where, f"BasicSR's {name} is not supported yet. Known: {', '.join(known)}.")
    elif not problems.names_may_come:
        near = did_you_mean(name, known)
        problems.add(where, f"no model named {name!r} is registered.{near} {registry.known_names(known)}")


def check_network(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> Signature | None:
    """Check ``network_g`` or ``network_d``; return the constructor's signature, or None for an unknown network."""
    component = find_component(section, finder(registry.ARCH_REGISTRY), where, problems)
    if component is None:
        return None
    return _check(section, component, where, problems)


def check_loss(entry: LossEntry | None, given: Any, where: KeyPath, problems: Problems) -> None:
    """Check one loss.

    Args:
        entry: the loss as read from the file, or None if it could not be read.
        given: its section in the file.
    """
    component = find_component(given, finder(registry.LOSS_REGISTRY), where, problems)
    if component is None or entry is None:
        return
    section = entry.section
    if entry.role != "adversarial" and is_adversarial(component):
        problems.add(
            (*where, "type"), f"{section['type']} takes a discriminator's output, not images; use it in gan_opt"
        )
        return
    for key, hint in _LOSS_KEYS.items() if len(where) == 3 else ():
        if key in given:
            to_type(hint, given[key], (*where, key), problems)
    _check(section, component, where, problems)
    weight = section.get("loss_weight")
    if isinstance(weight, (int, float)) and weight < 0:
        problems.add(
            (*where, "loss_weight"), f"is {weight:g}: a negative weight would make training increase the error"
        )
    ours = component.__module__.startswith(("basicsr.", "safmn."))
    if ours and isinstance(section.get("reduction"), str) and section["reduction"] not in ("mean", "sum"):
        problems.add(
            (*where, "reduction"), f"expected mean or sum, got {section['reduction']!r}: a loss must be a scalar"
        )


def check_metric(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> bool:
    """Check an entry of ``val.metrics``; return whether the metric compares with a GT image."""
    component = find_component(section, _among(metrics(), "metric"), where, problems)
    if component is None:
        return False
    extra = {"better": Literal["higher", "lower"]}
    _check(section, component, where, problems, without=METRIC_IMAGES, hints=METRIC_ARGUMENTS, extra=extra)
    return "img2" in _signature(component, ()).required


def check_optimiser(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> None:
    """Check ``train.optim_g`` or ``train.optim_d``."""
    component = find_component(section, _among(OPTIMIZERS, "optimiser"), where, problems)
    if component is not None:
        _check(section, component, where, problems, without=("params",), hints=TORCH_ARGUMENTS)
        if "lr" not in section:
            problems.add(where, f"{section['type']} needs 'lr', which is missing")


def check_scheduler(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> None:
    """Check ``train.scheduler``."""
    component = find_component(section, _among(SCHEDULES, "scheduler"), where, problems)
    if component is not None:
        _check(section, component, where, problems, whole_floats=True)


def finder(kind: registry.Registry) -> Callable[[str], Callable[..., Any]]:
    """Return a function that finds a component of a registry by name."""
    return lambda name: registry.find(kind, name)


def _among(known: Mapping[str, Callable[..., Any]], kind: str) -> Callable[[str], Callable[..., Any]]:
    """Return a function that finds one of ``known`` by name; ``kind`` is the word for it in messages."""

    def find(name: str) -> Callable[..., Any]:
        if name not in known:
            listed = registry.known_names(known) if kind == "metric" else f"Known: {', '.join(known)}."
            raise OptionError(f"no {kind} named {name!r}.{did_you_mean(name, known)} {listed}")
        return known[name]

    return find


_FINDERS: dict[str, Callable[[str], Callable[..., Any]]] = {
    **dict.fromkeys(("network_g", "network_d"), finder(registry.ARCH_REGISTRY)),
    **dict.fromkeys((*PUBLISHED, "losses"), finder(registry.LOSS_REGISTRY)),
    **dict.fromkeys(("optim_g", "optim_d"), _among(OPTIMIZERS, "optimiser")),
    "scheduler": _among(SCHEDULES, "scheduler"),
}


def find_component(
    section: Any, find: Callable[[str], Callable[..., Any]], where: KeyPath, problems: Problems
) -> Callable[..., Any] | None:
    """Return the component that a section's ``type`` names. If there is none, note the mistake and return None."""
    if not isinstance(section, Mapping):
        return None  # reported by the type check
    if "type" not in section:
        problems.add(where, "the key 'type' is missing")
        return None
    if not isinstance(section["type"], str):
        problems.add((*where, "type"), f"expected a name, got {show(section['type'])}")
        return None
    try:
        return find(section["type"])
    except OptionError as error:
        if not problems.names_may_come:
            problems.add((*where, "type"), str(error))
        return None


def check_value(hint: Any, value: Any, where: KeyPath, problems: Problems) -> None:
    """Check a value that is passed to a component unconverted: ``16.0`` is not accepted as an integer."""
    to_type(hint, value, where, problems, whole_floats=False)


def _check(
    section: Mapping[str, Any],
    component: Callable[..., Any],
    where: KeyPath,
    problems: Problems,
    *,
    without: tuple[str, ...] = (),
    hints: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    whole_floats: bool = False,
) -> Signature:
    """Check the keys of a section against its component's arguments; return the component's signature.

    Args:
        without: arguments that the framework passes.
        hints: types of arguments, more precise than those in the signature.
        extra: types of keys that are not arguments of the component.
        whole_floats: whether ``5e3`` is accepted as an integer.
    """
    signature = _signature(component, without)
    own = {key: (hints or {}).get(key, hint) for key, hint in signature.hints.items()}
    accepted = {**own, **(extra or {})}
    for key, value in section.items():
        if key in accepted:
            to_type(accepted[key], value, (*where, key), problems, whole_floats=whole_floats)
        elif key != "type" and not signature.is_open:
            problems.add((*where, key), f"{section['type']} has no argument {key!r}.{did_you_mean(key, accepted)}")
    for key in signature.required:
        if key not in section:
            problems.add(where, f"{section['type']} needs {key!r}, which is missing")
    return signature


def defaults_of(key: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default arguments of a section's component, by name; empty for an unknown component.

    Args:
        key: the section's key, for example ``network_g`` or ``optim_g``.
        section: the section itself.
    """
    try:
        component = _FINDERS[key](section["type"])
    except (KeyError, OptionError):
        return {}
    defaults = _signature(component, ()).defaults
    return {name: default for name, default in defaults.items() if default is not REQUIRED}


def default_of(signature: Signature, key: str) -> Any:
    """Return the default of an argument, or None if it has no default."""
    default = signature.defaults.get(key)
    return None if default is REQUIRED else default
