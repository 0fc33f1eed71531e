"""Import paths of BasicSR 1.2 and 1.3 that moved in 1.4, so that components written for them can be imported.

Modules that moved are found under both names. Functions that moved are added to the module in which they were. For a
name that is in neither, :func:`advice` says where the installed BasicSR has it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path

_PACKAGES = {"basicsr.models.archs": "basicsr.archs", "basicsr.models.losses": "basicsr.losses"}
"""Former package -> where it is now, with its submodules."""
_MODULES = {
    "basicsr.losses.losses": ("basicsr.losses.basic_loss", "basicsr.losses.gan_loss"),
}
"""Former module -> the modules that its contents are in now."""
_NAMES = {
    "basicsr.utils.matlab_functions": (
        "basicsr.utils.color_util",
        ["rgb2ycbcr", "bgr2ycbcr", "ycbcr2rgb", "ycbcr2bgr"],
    ),
    "basicsr.metrics.metric_util": ("basicsr.utils.color_util", ["rgb2ycbcr", "bgr2ycbcr"]),
}
"""Module -> (the module where names of it are now, these names)."""


class MovedFinder(MetaPathFinder):
    """Finds modules of BasicSR under the names that they had before they moved."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("basicsr."):
            return None
        now = _now(name)
        if now in _MODULES:
            return spec_from_loader(name, _Joined(_MODULES[now]))
        if now != name:
            return spec_from_loader(name, _Alias(now)) if _exists(now) else None
        if name in _NAMES:
            spec = next(filter(None, (finder.find_spec(name, path) for finder in sys.meta_path if finder is not self)))
            if spec.loader is not None:
                spec.loader = _WithNames(spec.loader, *_NAMES[name])
            return spec
        return None


def _now(name: str) -> str:
    """Return the present name of a module."""
    for former, now in _PACKAGES.items():
        if name == former or name.startswith(former + "."):
            return now + name.removeprefix(former)
    return name


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class _Alias(Loader):
    """Gives a module that is loaded under another name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has set that of the former name


class _Joined(Loader):
    """Makes a module of the contents of several."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        for name in self._names:
            part = vars(importlib.import_module(name))
            vars(module).update({key: value for key, value in part.items() if not key.startswith("__")})


class _WithNames(Loader):
    """The loader of a module; adds names of another module to it."""

    def __init__(self, loader: Loader, source: str, names: Sequence[str]) -> None:
        self._loader, self._source, self._names = loader, source, names

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        source = importlib.import_module(self._source)
        for name in self._names:
            if hasattr(source, name):
                vars(module).setdefault(name, getattr(source, name))


def advice(error: BaseException) -> str:
    """Return where the installed BasicSR has what an import did not find, as a sentence; empty if it is elsewhere."""
    if not isinstance(error, ImportError) or not (error.name or "").startswith("basicsr"):
        return ""
    text = str(error)
    wanted = text.split("'")[1] if text.startswith("cannot import name") else (error.name or "").rpartition(".")[2]
    places = sorted(set(_places_of(wanted)))
    if places:
        return f" The installed BasicSR has {wanted} in {', '.join(places)}."
    return f" The installed BasicSR has no {wanted}: put the file of the repository that has it beside yours."


def _places_of(name: str) -> Iterator[str]:
    """Yield the modules of the installed BasicSR that define a function or class, or have this name themselves."""
    found = importlib.util.find_spec("basicsr")
    for folder in (found.submodule_search_locations if found else None) or ():
        for path in Path(folder).rglob("*.py"):
            module = ".".join(("basicsr", *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
            if path.stem == name:
                yield module
            source = path.read_text(encoding="utf-8", errors="replace")
            if name in source and any(
                isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name
                for node in ast.parse(source).body
            ):
                yield module
