"""Make ``import basicsr`` (and ``import spandrel``) work with current versions of torch and torchvision.

BasicSR 1.4.2 is the newest release on PyPI and is older than both. Two things can fail:

1. ``import torchvision`` fails with "operator torchvision::nms does not exist" if torchvision's compiled extension does
   not match torch (for example a CPU build of torch with PyPI's CUDA build of torchvision).
2. ``basicsr.data.degradations`` imports ``torchvision.transforms.functional_tensor``, removed in torchvision 0.17.

Each repair is applied only if the plain import fails or the module is missing.

``import basicsr`` imports all of BasicSR, torchvision and SciPy's statistics, which takes seconds. BasicSR's registries
contain only names, so they are loaded separately. The rest is imported, and repaired, on first use. ``import safmn``
itself only installs the hook that does this, and registers our components, just before BasicSR is imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING

from safmn.basicsr_paths import MovedFinder
from safmn.errors import UserError

if TYPE_CHECKING:
    import torch

COMPONENTS = ("archs", "losses", "metrics", "data", "training.models")
"""Importing one of these packages of SAFMN registers its components."""
FIX = "safmn doctor --fix"
_REGISTRIES = "basicsr.utils.registry"
# torchvision registers fake ("meta") kernels for these at import. That fails if no schema is defined.
_TORCHVISION_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A Library unregisters its definitions when it is garbage-collected, so this module keeps it.
_libraries: list[torch.library.Library] = []


def _forget(package: str) -> None:
    """Drop a half-imported package, so that the next import runs it from the start."""
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        del sys.modules[name]


def _define_missing_operators() -> None:
    """Define the missing operator schemas that torchvision's Python files need. They get no kernels, so calls fail."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _TORCHVISION_SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _libraries.append(library)


def _repair_torchvision() -> None:
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        _forget("torchvision")
        _define_missing_operators()
        import torchvision  # noqa: F401


def _repair_functional_tensor() -> None:
    """Replace the removed private module. BasicSR needs one function of it, which is now public in ``functional``."""
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    functional = importlib.import_module("torchvision.transforms.functional")
    module = types.ModuleType(name, "Replaces torchvision's removed module for BasicSR 1.4.2 (see safmn.compat).")
    module.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[name] = module


@functools.cache
def has_basicsr() -> bool:
    """Return whether BasicSR and torchvision, which BasicSR imports, are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("basicsr", "torchvision"))


def require_basicsr() -> None:
    """Check that BasicSR is installed.

    Raises:
        UserError: it is not installed. The message says how to install it.
    """
    if not has_basicsr():
        raise UserError(f"training needs BasicSR, which is not installed. To install it: {FIX}")


def repair_torchvision() -> None:
    """Import torchvision and make the names that BasicSR expects in it available. Idempotent."""
    _repair_torchvision()
    _repair_functional_tensor()


def register_components() -> None:
    """Import all of SAFMN's components, which registers them. Idempotent."""
    for package in COMPONENTS:
        importlib.import_module(f"safmn.{package}")


class _Prepared(Loader):
    """BasicSR's loader; repairs torchvision and registers our components just before BasicSR is imported."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        repair_torchvision()
        register_components()
        self._loader.exec_module(module)


class _Registries(Loader):
    """Provides the registries that are already loaded."""

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return registries()

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: :func:`registries` has already run the module."""


class _Finder(MetaPathFinder):
    """Finds ``basicsr`` through the other finders, and gives it and its registry module the loaders above."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == _REGISTRIES and registries() is not None:
            return spec_from_loader(name, _Registries())
        if name != "basicsr":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Prepared(spec.loader)
        return spec


def install() -> None:
    """Make ``import basicsr`` work and register our components. If it is already imported, register them now.

    Modules that moved between versions of BasicSR are found under their former names, too.
    """
    sys.meta_path.insert(0, MovedFinder())
    if "basicsr" in sys.modules:
        register_components()
    else:
        sys.meta_path.insert(0, _Finder())


@functools.cache
def registries() -> types.ModuleType | None:
    """Return BasicSR's registry module, which its components use, or None if BasicSR is not installed."""
    if _REGISTRIES in sys.modules:  # BasicSR was imported before us
        return sys.modules[_REGISTRIES]
    if not has_basicsr():
        return None
    folder = next(iter(importlib.util.find_spec("basicsr").submodule_search_locations))  # type: ignore[union-attr, arg-type]
    spec = importlib.util.spec_from_file_location(_REGISTRIES, Path(folder, "utils", "registry.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
