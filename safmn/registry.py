"""One way to find and build a component by the name that stands in an option file.

BasicSR's registries are the plug-in seam. What is new here (``SAFMN``, ``FFTLoss``, ``RealGANModel``, ...) is
registered under its plain name, so that BasicSR's own builders find it too. What replaces a component of BasicSR under
the same name (``SRModel``, ``PairedImageDataset``, ``calculate_psnr``, ...) is registered with the suffix ``safmn``,
which BasicSR's registries provide for this; here that one is preferred. Everything a user registers works as well.

Where BasicSR is not installed (upscaling and export do not need it), registries of the same interface stand in.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from safmn import compat
from safmn.errors import OptionError, UserError, did_you_mean

_basicsr = compat.registries()


class _Registry:
    """Names and components, with the part of BasicSR's interface that is used here."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._components: dict[str, Any] = {}

    def register(self, component: Any = None, suffix: str | None = None) -> Any:
        """Register under the component's own name (and suffix); without one, a decorator."""
        if component is None:
            return lambda decorated: self.register(decorated, suffix)
        self._components[component.__name__ + (f"_{suffix}" if suffix else "")] = component
        return component

    def get(self, name: str) -> Any:
        """The component of that exact name."""
        return self._components[name]

    def __contains__(self, name: str) -> bool:
        return name in self._components

    def keys(self) -> Iterable[str]:
        """All names, with suffixes."""
        return self._components.keys()


Registry: TypeAlias = Any  # BasicSR's class, or ours
ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY = (
    _Registry(kind) if _basicsr is None else getattr(_basicsr, f"{kind.upper()}_REGISTRY")
    for kind in ("arch", "dataset", "loss", "metric", "model")
)
DEGRADATION_REGISTRY: Registry = _Registry("degradation")  # BasicSR has none

__all__ = [
    "ARCH_REGISTRY",
    "DATASET_REGISTRY",
    "DEGRADATION_REGISTRY",
    "LOSS_REGISTRY",
    "METRIC_REGISTRY",
    "MODEL_REGISTRY",
    "OURS",
    "build",
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
}


def import_basicsr() -> None:
    """Let BasicSR register its own components, if it is installed; before anybody's of the same name."""
    if compat.has_basicsr():
        importlib.import_module("basicsr")


def names(registry: Registry) -> list[str]:
    """The names that an option file may use, sorted, without suffixes."""
    import_basicsr()
    found = set()
    for name in registry.keys():  # noqa: SIM118 - a Registry iterates over items
        for suffix in (f"_{OURS}", "_basicsr"):
            name = name.removesuffix(suffix)
        found.add(name)
    return sorted(found)


def find(registry: Registry, name: str) -> Callable[..., Any]:
    """The class or function registered under ``name``: ours before BasicSR's.

    Raises:
        OptionError: nothing of that name is registered; names the nearest one.
    """
    for load in (lambda: None, import_basicsr):
        load()
        for suffix in _SUFFIXES:
            if name + suffix in registry:
                component: Callable[..., Any] = registry.get(name + suffix)
                return component
    kind = _KINDS.get(id(registry), "component")
    known = names(registry)
    raise OptionError(f"no {kind} named {name!r} is registered.{did_you_mean(name, known)} Known: {', '.join(known)}.")


def build(registry: Registry, section: Mapping[str, Any], **runtime: Any) -> Any:
    """Build ``section["type"]`` with the rest of the section, and runtime objects, as keyword arguments.

    Raises:
        OptionError: nothing of that type is registered, or its constructor does not take these values.
    """
    arguments = {key: value for key, value in section.items() if key != "type"}
    component = find(registry, section["type"])
    try:
        return component(**arguments, **runtime)
    except UserError:
        raise
    except Exception as error:  # constructors may be anybody's, and raise anything
        reason = str(error) if isinstance(error, (ValueError, TypeError, RuntimeError)) else repr(error)
        raise OptionError(f"{section['type']} cannot be built from {arguments}: {reason}") from error
