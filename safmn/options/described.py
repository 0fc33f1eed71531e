"""Describe every section and component of an option file as data: names, types, defaults and explanations.

The descriptions come from constructors' signatures, typed Structs and their docstrings. The JSON Schema
(:mod:`safmn.options.schema`) and the reference (:mod:`safmn.options.reference`) are generated from them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import docstring_parser
import msgspec

from safmn import registry
from safmn.optim.optimizers import DOCUMENTED, value_types
from safmn.options import components, datasets
from safmn.options.losses import EntryKeys
from safmn.options.signatures import REQUIRED, signature_of
from safmn.options.typed import struct_defaults

_OURS = __name__.split(".")[0]
_FILLED_IN = ("type", "phase", "scale")  # keys of every data set, set by the framework or naming the component


@dataclass(frozen=True)
class DescribedKey:
    """A key of a section.

    Attributes:
        name: the key in the file.
        hint: its type.
        default: its default, or ``REQUIRED``.
        text: what it does; empty if the component's docstring does not mention it.
    """

    name: str
    hint: Any
    default: Any
    text: str


@dataclass(frozen=True)
class Described:
    """A section, or a component that ``type`` names.

    Attributes:
        name: the name of the component or section.
        text: a one-sentence description.
        keys: its keys, without ``type``.
        is_open: whether it may accept further keys, which are unknown without running it.
        package: the Python package that declares it.
    """

    name: str
    text: str
    keys: tuple[DescribedKey, ...]
    is_open: bool
    package: str

    @property
    def ours(self) -> bool:
        """Whether SAFMN declares it."""
        return self.package == _OURS


def section(kind: type[msgspec.Struct], name: str = "") -> Described:
    """Return the description of a section that a typed Struct declares."""
    defaults, texts = struct_defaults(kind), _texts(kind)
    keys = tuple(
        DescribedKey(name, field.type, defaults.get(name, REQUIRED), texts.get(name, ""))
        for field in msgspec.structs.fields(kind)
        for name in [field.encode_name]
    )
    return Described(name or kind.__name__, _summary(kind), keys, is_open=False, package=_OURS)


def networks() -> list[Described]:
    """Return all registered networks, ours first."""
    return _registered(registry.ARCH_REGISTRY)


def losses() -> list[Described]:
    """Return all registered losses, ours first."""
    return _registered(registry.LOSS_REGISTRY)


def loss_keys() -> Described:
    """Return the keys of an entry of ``train.losses`` that are not arguments of the loss."""
    return section(EntryKeys, "losses")


def metrics() -> list[Described]:
    """Return all metrics that take images as arrays, ours first."""
    found = components.metrics()
    without, hints = components.METRIC_IMAGES, components.METRIC_ARGUMENTS
    return _ours_first([_component(name, kind, without=without, hints=hints) for name, kind in found.items()])


def optimisers() -> list[Described]:
    """Return the usual optimisers."""
    return [_component(name, kind, without=("params",), hints=value_types(kind)) for name, kind in DOCUMENTED.items()]


def schedules() -> list[Described]:
    """Return all learning-rate schedules."""
    names = registry.names(registry.SCHEDULE_REGISTRY)
    return installed([_component(name, registry.find(registry.SCHEDULE_REGISTRY, name)) for name in names])


def data_sets() -> list[Described]:
    """Return all registered data sets, ours first, without the loader's keys."""
    kinds = {name: registry.find(registry.DATASET_REGISTRY, name) for name in registry.names(registry.DATASET_REGISTRY)}
    return _ours_first([_data_set(name, kind) for name, kind in kinds.items()])


def models() -> list[Described]:
    """Return all models that SAFMN can train. They have no keys: theirs are in ``train`` and ``degradation``."""
    kinds = {name: registry.find(registry.MODEL_REGISTRY, name) for name in components.models()}
    return [Described(name, _summary(kind), (), is_open=False, package=_package(kind)) for name, kind in kinds.items()]


def _registered(kind: registry.Registry) -> list[Described]:
    return _ours_first([_component(name, registry.find(kind, name)) for name in registry.names(kind)])


def _ours_first(found: list[Described]) -> list[Described]:
    return sorted(found, key=lambda described: (not described.ours, described.name.lower()))


def _component(
    name: str, kind: Callable[..., Any], *, without: tuple[str, ...] = (), hints: Mapping[str, Any] | None = None
) -> Described:
    signature, texts = signature_of(kind, without), _texts(kind)
    keys = tuple(
        DescribedKey(key, (hints or {}).get(key, hint), signature.defaults[key], texts.get(key, ""))
        for key, hint in signature.hints.items()
    )
    return Described(name, _summary(kind), keys, signature.is_open, _package(kind))


def _data_set(name: str, kind: Any) -> Described:
    declared = getattr(kind, "OPTIONS", None)
    if declared is not None:
        own = section(declared)
        keys = tuple(key for key in own.keys if key.name not in _FILLED_IN)
        return Described(name, _summary(kind), keys, is_open=False, package=_package(kind))
    hints, _, is_open = datasets.own_keys(kind)
    keys = tuple(DescribedKey(key, hint, None, "") for key, hint in sorted(hints.items()) if key not in _FILLED_IN)
    return Described(name, _summary(kind), keys, is_open, _package(kind))


def installed(kinds: Sequence[Described]) -> list[Described]:
    """Return the components of SAFMN, BasicSR and torch, without those that users' files or tests registered."""
    return [kind for kind in kinds if kind.package in (_OURS, "basicsr", "torch")]


def _package(kind: Any) -> str:
    return str(kind.__module__).split(".")[0]


def _summary(kind: Any) -> str:
    """Return the summary of a docstring as Markdown."""
    parsed = docstring_parser.parse(_own_doc(kind))
    return _plain(parsed.short_description or "")


def _own_doc(kind: Any) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def _texts(kind: Any) -> dict[str, str]:
    """Return the text for each argument or attribute from the docstrings of a function, or a class and its parents."""
    texts: dict[str, str] = {}
    for part in kind.__mro__ if isinstance(kind, type) else (kind,):
        if part is object or part is msgspec.Struct:
            continue
        for entry in docstring_parser.parse(_own_doc(part)).params:
            for name in entry.arg_name.split(","):
                texts.setdefault(name.strip(), _plain(entry.description or ""))
    return texts


def _plain(text: str) -> str:
    """Return a text as one line of Markdown, without Sphinx roles and with single backquotes."""
    joined = " ".join(text.split())
    joined = joined[:1].upper() + joined[1:]
    for role in (":class:", ":func:", ":mod:", ":data:", ":attr:", ":meth:"):
        joined = joined.replace(role, "")
    return joined.replace("``", "`").replace("`~", "`")
