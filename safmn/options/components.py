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
from safmn.errors import OptionError, did_you_mean, first_line
from safmn.metrics.set_metric import set_metric_of
from safmn.optim.optimizers import find_optimizer, value_types
from safmn.options.losses import PUBLISHED, EntryKeys, LossEntry, is_adversarial
from safmn.options.problems import REMOVED, KeyPath, Problems
from safmn.options.signatures import REQUIRED, Signature, signature_of
from safmn.options.typed import accepts_null, show, to_type
from safmn.value_types import NotNegative

# Arguments that BasicSR's metrics share. The framework passes (H, W, C) images, and slicing needs an integer border.
METRIC_ARGUMENTS: dict[str, Any] = {"crop_border": NotNegative, "input_order": Literal["HWC"]}
METRIC_IMAGES = ("img", "img2", "lq")  # the output, its GT and its LQ image, passed by the framework
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


MODEL_ARGUMENTS = ("options", "execution", "ranks")
"""The arguments that the framework passes to a model; others are keys of the section ``model``."""


def check_model(name: Any, section: Any, where: KeyPath, problems: Problems) -> None:
    """Check ``model_type``, and the section ``model``: further arguments of the model's constructor."""
    known = models()
    if not isinstance(name, str):
        return  # reported by the type check
    if name in known:
        kind = registry.find(registry.MODEL_REGISTRY, name)
        try:
            inspect.signature(kind).bind_partial(*MODEL_ARGUMENTS)
        except TypeError:
            message = f"{name} has another constructor than SAFMN's models: subclass safmn.training.models.Model"
            _unusable_model(where, message, section, problems)
            return
        if missing := sorted(getattr(kind, "__abstractmethods__", ())):
            problems.add(where, f"{name} lacks {', '.join(missing)}, which a model must have")
            return
        own = section if isinstance(section, Mapping) else {}
        _check({"type": name, **own}, kind, ("model",), problems, without=tuple(inspect.signature(kind).parameters)[:3])
        return
    if name in registry.names(registry.MODEL_REGISTRY):
        problems.add(where, f"BasicSR's {name} is not supported yet. Known: {', '.join(known)}.")
    elif not problems.names_may_come:
        near = did_you_mean(name, known)
        message = f"no model named {name!r} is registered.{near}"
        _unusable_model(where, message, section, problems, more=f" {registry.known_names(known)}")


def _unusable_model(where: KeyPath, message: str, section: Any, problems: Problems, more: str = "") -> None:
    """Note an unknown model: a mistake, or with ``tolerant`` a warning, and SRModel takes its place.

    Args:
        section: the file's section ``model``, which SRModel does not take.
    """
    if problems.tolerant:
        problems.warn(where, f"{message} SRModel takes its place (tolerant)")
        problems.edits[where] = "SRModel"
        if section is not None:
            problems.warn(("model",), "is left out: it belongs to the unknown model (tolerant)")
            problems.edits[("model",)] = REMOVED
    else:
        problems.add(where, message + more)


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
    if not isinstance(component, type):
        problems.add(
            (*where, "type"),
            f"{section['type']} is a function; a loss is a class (torch.nn.Module) whose forward(pred, target) returns "
            "one number",
        )
        return
    if entry.role != "adversarial" and is_adversarial(component):
        problems.add(
            (*where, "type"), f"{section['type']} takes a discriminator's output, not images; use it in gan_opt"
        )
        return
    for key, hint in _LOSS_KEYS.items() if len(where) == 3 else ():
        if key in given:
            to_type(hint, given[key], (*where, key), problems)
    theirs = {"loss_weight": float} if component.__module__.startswith("basicsr.") else None
    _check(section, component, where, problems, hints=theirs)
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
    missing = getattr(component, "missing", None)  # says before the training what the first validation needs
    if missing is not None and (sentence := missing(section)):
        problems.add(where, sentence)
    if set_metric_of(section) is not None:
        return not section.get("reference")
    return "img2" in _signature(component, ()).required


def check_optimiser(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> None:
    """Check ``train.optim_g`` or ``train.optim_d``."""
    component = find_component(section, find_optimizer, where, problems)
    if component is not None:
        _check(section, component, where, problems, without=("params",), hints=value_types(component))  # type: ignore[arg-type]
        if section.get("lr") is None:
            problems.add(where, f"{section['type']} needs 'lr', which is missing")


def check_scheduler(section: Mapping[str, Any], where: KeyPath, problems: Problems) -> None:
    """Check ``train.scheduler``."""
    component = find_component(section, finder(registry.SCHEDULE_REGISTRY), where, problems)
    if component is None:
        return
    if "optimizer" in _signature(component, ()).required:
        problems.add(
            (*where, "type"),
            f"{section['type']} takes an optimiser, as torch's schedulers do; a schedule is a function of its keys "
            "that returns a function (iteration, base learning rate) -> learning rate",
        )
        return
    _check(section, component, where, problems, whole_floats=True)


def finder(kind: registry.Registry) -> Callable[[str], Callable[..., Any]]:
    """Return a function that finds a component of a registry by name."""
    return lambda name: registry.find(kind, name)


def _among(known: Mapping[str, Callable[..., Any]], kind: str) -> Callable[[str], Callable[..., Any]]:
    """Return a function that finds one of ``known`` by name; ``kind`` is the word for it in messages."""

    def find(name: str) -> Callable[..., Any]:
        if name not in known:
            raise OptionError(f"no {kind} named {name!r}.{did_you_mean(name, known)} {registry.known_names(known)}")
        return known[name]

    return find


_FINDERS: dict[str, Callable[[str], Callable[..., Any]]] = {
    **dict.fromkeys(("network_g", "network_d"), finder(registry.ARCH_REGISTRY)),
    **dict.fromkeys((*PUBLISHED, "losses"), finder(registry.LOSS_REGISTRY)),
    **dict.fromkeys(("optim_g", "optim_d"), find_optimizer),
    "scheduler": finder(registry.SCHEDULE_REGISTRY),
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
    """Check a value that is passed to a component unconverted: ``16.0`` is not accepted as an integer.

    A word for a boolean (``yes``) is noted as an edit, so that the component gets a boolean.
    """
    note_boolean(value, to_type(hint, value, where, problems, whole_floats=False), where, problems)


def note_boolean(value: Any, converted: Any, where: KeyPath, problems: Problems) -> None:
    """Note the boolean that a word such as ``yes`` was converted to, in place of the word."""
    if isinstance(value, str) and isinstance(converted, bool):
        problems.edits[where] = converted


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

    Null means "not given" for an argument that has a default and does not take null.

    Args:
        without: arguments that the framework passes.
        hints: types of arguments, more precise than those in the signature.
        extra: types of keys that are not arguments of the component.
        whole_floats: whether ``5e3`` is accepted as an integer.
    """
    signature = _signature(component, without)
    stated = {key: hint for key, hint in (hints or {}).items() if key in signature.hints} | dict(extra or {})
    accepted = {**signature.hints, **stated}
    guessed: list[tuple[KeyPath, str]] = []
    for key, value in section.items():
        path = (*where, key)
        if key == "type":
            continue
        if key not in accepted:
            _unknown_argument(section, component, path, signature, accepted, problems)
        elif value is None and not accepts_null(accepted[key]) and signature.defaults.get(key) is not REQUIRED:
            problems.edits[path] = REMOVED
        else:
            found = Problems("")
            converted = to_type(accepted[key], value, path, found, whole_floats=whole_floats)
            note_boolean(value, converted, path, problems)
            if key in stated or component.__module__.startswith("safmn."):
                for place, message in found.messages():
                    problems.add(place, message)
            else:
                guessed += found.messages()
    if guessed:
        _note_guessed(section, component, guessed, where, problems)
    for key in signature.required:
        if key not in section:
            problems.add(where, f"{section['type']} needs {key!r}, which is missing")
    return signature


def _unknown_argument(
    section: Mapping[str, Any],
    component: Callable[..., Any],
    where: KeyPath,
    signature: Signature,
    accepted: Mapping[str, Any],
    problems: Problems,
) -> None:
    """Note a key that is no argument: a warning if a constructor swallows it, a mistake otherwise."""
    kind, key = section["type"], str(where[-1])
    near = did_you_mean(key, accepted)
    if signature.swallows and isinstance(component, type):
        problems.warn(where, f"{kind} takes this key as one of **kwargs and does not read it.{near}")
    elif not signature.is_open:
        problems.unknown(where, f"{kind} has no argument {key!r}.{near}", section[key])


def _note_guessed(
    section: Mapping[str, Any],
    component: Callable[..., Any],
    guessed: list[tuple[KeyPath, str]],
    where: KeyPath,
    problems: Problems,
) -> None:
    """Note the values that the types guessed from defaults and annotations refuse.

    They are warnings if the constructor takes them, which is tried, and mistakes if it raises an exception. A function,
    such as a metric, cannot be tried.
    """
    kind = section["type"]
    edits = {key: problems.edits.get((*where, key), value) for key, value in section.items() if key != "type"}
    arguments = {key: value for key, value in edits.items() if value is not REMOVED}
    refusal = _refusal(component, arguments) if isinstance(component, type) else None
    for path, message in guessed:
        if refusal is None:
            problems.warn(path, f"{message}; this type is guessed from the code of {kind}, and the value is used")
        else:
            problems.guessed(path, f"{message}; {kind} refuses it as well: {refusal}")


def _refusal(component: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Build a component to see whether its constructor takes the arguments; return its exception, None if it does."""
    import torch  # only here: most option files need no trial

    try:
        with torch.random.fork_rng(devices=[]):
            component(**arguments)
    except Exception as error:  # a user's constructor may raise any exception
        return f"{type(error).__name__}: {first_line(error)}"
    return None


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
