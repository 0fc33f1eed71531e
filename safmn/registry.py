"""Find and build components by the names used in option files.

Components are registered in BasicSR's registries. New components (``SAFMN``, ``FFTLoss``, ``RealGANModel``, ...) have
their plain names, so BasicSR's builders find them as well. A component that replaces BasicSR's of the same name
(``SRModel``, ``PairedImageDataset``, ``calculate_psnr``, ...) is registered with the suffix ``safmn``, a feature of
BasicSR's registries, and is preferred here. Components that users register work in the same way.

SAFMN's components are imported, and so registered, at the first use of :func:`find`, :func:`names` or :func:`build`, or
of ``basicsr``. The registries themselves contain them from then on.

If BasicSR is not installed (upscaling and export do not need it), registries with the same interface replace BasicSR's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safmn import compat
from safmn.errors import OptionError, UserError, did_you_mean
from safmn.own_code import described

_basicsr = compat.registries()


class _Registry:
    """A registry with the part of BasicSR's interface that SAFMN uses."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._components: dict[str, Any] = {}

    def register(self, component: Any = None, suffix: str | None = None, *, name: str | None = None) -> Any:
        """Register ``component`` under its own name (plus suffix), or ``name``. Without it, return a decorator.

        Raises:
            OptionError: SAFMN has a component of this name.
        """
        if component is None:
            return lambda decorated: self.register(decorated, suffix, name=name)
        name = name or component.__name__ + (f"_{suffix}" if suffix else "")
        present = self._components.get(name)
        if present is not None and present.__module__.startswith("safmn.") and present is not component:
            raise OptionError(f"SAFMN has a {self._name} named {name!r}: give yours another name")
        if present is not None and present.__module__ != component.__module__:  # the same one: it is imported again
            raise OptionError(
                f"{present.__module__} has registered a {self._name} named {name!r}: give it another name"
            )
        self._components[name] = component
        return component

    def get(self, name: str) -> Any:
        """Return the component with exactly this name."""
        return self._components[name]

    def __contains__(self, name: str) -> bool:
        return name in self._components

    def keys(self) -> Iterable[str]:
        """Return all names, with their suffixes."""
        return self._components.keys()


Registry: TypeAlias = Any  # BasicSR's class or _Registry
ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY = (
    _Registry(kind) if _basicsr is None else getattr(_basicsr, f"{kind.upper()}_REGISTRY")
    for kind in ("arch", "dataset", "loss", "metric", "model")
)
# BasicSR has none of these.
DEGRADATION_REGISTRY: Registry = _Registry("degradation step")
OPTIMIZER_REGISTRY: Registry = _Registry("optimiser")
SCHEDULE_REGISTRY: Registry = _Registry("scheduler")

__all__ = [
    "ARCH_REGISTRY",
    "DATASET_REGISTRY",
    "DEGRADATION_REGISTRY",
    "LOSS_REGISTRY",
    "METRIC_REGISTRY",
    "MODEL_REGISTRY",
    "OPTIMIZER_REGISTRY",
    "OURS",
    "SCHEDULE_REGISTRY",
    "build",
    "construct",
    "find",
    "import_basicsr",
    "names",
]

OURS = "safmn"
_SUFFIXES = (f"_{OURS}", "", "_basicsr")  # in order of preference
_KINDS = {
    id(ARCH_REGISTRY): "network",
    id(DATASET_REGISTRY): "data set",
    id(DEGRADATION_REGISTRY): "degradation step",
    id(LOSS_REGISTRY): "loss",
    id(METRIC_REGISTRY): "metric",
    id(MODEL_REGISTRY): "model",
    id(OPTIMIZER_REGISTRY): "optimiser",
    id(SCHEDULE_REGISTRY): "scheduler",
}


_PACKAGES = {
    id(ARCH_REGISTRY): "archs",
    id(DATASET_REGISTRY): "data",
    id(DEGRADATION_REGISTRY): "degradations",
    id(LOSS_REGISTRY): "losses",
    id(METRIC_REGISTRY): "metrics",
    id(MODEL_REGISTRY): "training.models",
    id(OPTIMIZER_REGISTRY): "optim.optimizers",
    id(SCHEDULE_REGISTRY): "optim.schedules",
}  # of SAFMN; importing one registers its components


def _import_ours(registry: Registry) -> None:
    if id(registry) in _PACKAGES:
        importlib.import_module(f"safmn.{_PACKAGES[id(registry)]}")


def import_basicsr() -> None:
    """Import our components and, if it is installed, BasicSR: both register theirs before others use the same names."""
    compat.register_components()
    if compat.has_basicsr():
        importlib.import_module("basicsr")


def names(registry: Registry) -> list[str]:
    """Return the names that an option file may use, sorted and without suffixes."""
    _import_ours(registry)
    import_basicsr()
    found = set()
    for name in registry.keys():  # noqa: SIM118 - a Registry iterates over items
        for suffix in (f"_{OURS}", "_basicsr"):
            name = name.removesuffix(suffix)
        found.add(name)
    return sorted(found)


def known_names(known: Iterable[str]) -> str:
    """Return the sentences of an error that list the known components, and say where others may come from."""
    more = "" if compat.has_basicsr() else f" BasicSR, which has more, is not installed: {compat.FIX}."
    return f"Known: {', '.join(known)}.{more} {_about_imports()}"


def _about_imports() -> str:
    """Return a sentence that says how a component of the user's own is found."""
    from safmn.imports import imported  # imports this module

    files = ", ".join(Path(entry.target).name for entry in imported())
    if files:
        return f"If it is your own, its file must be named under `imports` and register it; imported: {files}."
    return "If it is your own, name its file in the option file: `imports: [my_parts.py]`."


def find(registry: Registry, name: str) -> Callable[..., Any]:
    """Return the class or function registered under ``name``. SAFMN's component comes before BasicSR's.

    Raises:
        OptionError: nothing is registered under this name. The message gives the nearest name.
    """
    for load in (lambda: _import_ours(registry), import_basicsr):
        load()
        for suffix in _SUFFIXES:
            if name + suffix in registry:
                component: Callable[..., Any] = registry.get(name + suffix)
                return component
    kind = _KINDS.get(id(registry), "component")
    known = names(registry)
    raise OptionError(f"no {kind} named {name!r} is registered.{did_you_mean(name, known)} {known_names(known)}")


def build(registry: Registry, section: Mapping[str, Any], **runtime: Any) -> Any:
    """Build the component ``section["type"]``. The rest of the section and ``runtime`` are its keyword arguments.

    Raises:
        OptionError: no component of this type is registered, or its constructor rejects the values.
    """
    return construct(find(registry, section["type"]), section, **runtime)


def construct(component: Callable[..., Any], section: Mapping[str, Any], **runtime: Any) -> Any:
    """Call a component with its section, without ``type``, and ``runtime`` as keyword arguments.

    Raises:
        OptionError: it rejects the values.
    """
    arguments = {key: value for key, value in section.items() if key != "type"}
    try:
        built = component(**arguments, **runtime)
    except UserError:
        raise
    except Exception as error:  # a user's constructor may raise any exception
        raise OptionError(f"{section['type']} cannot be built from {arguments}: {described(error)}") from error
    for layer in built.modules() if hasattr(component, "register_parameter") else ():  # of a torch module
        if getattr(layer, "has_uninitialized_params", bool)():
            raise OptionError(
                f"{section['type']} has a layer without sizes, {type(layer).__name__}: its weights do not exist before "
                "the first image. Give it its number of input channels"
            )
    return built
