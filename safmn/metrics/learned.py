"""Metrics by networks, through the optional packages pyiqa and torchmetrics: LPIPS, DISTS, TOPIQ, MUSIQ, CLIP-IQA.

They look at RGB, not at Y. Their own weights are never downloaded unless ``fetch`` is true. pyiqa's licence allows no
commercial use, which is said when it is used; torchmetrics is under Apache-2.0.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from safmn.errors import DataError, OptionError, UserError, did_you_mean, first_line
from safmn.registry import METRIC_REGISTRY
from safmn.system.extras import EXTRAS
from safmn.value_types import Array, NotNegative

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Package = Literal["pyiqa", "torchmetrics"]
_Made = TypeVar("_Made")
_BUILDING = threading.Lock()
OF_SETS = {  # metrics of pyiqa that compare folders
    "fid": "use type: FID, package: pyiqa (--metrics pyiqa:fid)",
    "sfid": "it is not offered; FID and KID are",
    "fid_dinov2": "it is not offered; FID and KID are",
    "inception_score": "it is not offered; FID and KID are",
}
_TORCHMETRICS = {
    "lpips": (
        "torchmetrics.image.lpip",
        "LearnedPerceptualImagePatchSimilarity",
        {"net_type": "alex", "normalize": True},
    ),
    "dists": ("torchmetrics.image.dists", "DeepImageStructureAndTextureSimilarity", {}),
}


def missing(package: str) -> str | None:
    """Return the sentence that says how to install an optional package; None if it is installed."""
    if importlib.util.find_spec(package) is not None:
        return None
    extra = next(name for name, each in EXTRAS.items() if package in each.packages)
    name = EXTRAS[extra].packages[package].partition(">")[0]  # as pip knows it
    return f"needs the package {name}: pip install {name} (in a clone of SAFMN, pip install '.[{extra}]')"


def _needs(better: str, package: str | None = None) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Say which values of a metric are better, and which package it always needs."""

    def declare(function: Callable[..., float]) -> Callable[..., float]:
        def missing_of(section: Any) -> str | None:
            return missing(package or section.get("package", "pyiqa"))

        function.better = better  # type: ignore[attr-defined]
        function.missing = missing_of  # type: ignore[attr-defined]
        function.version = versions  # type: ignore[attr-defined]
        return function

    return declare


def versions() -> list[str]:
    """Return the versions of the packages, on which kept scores depend."""
    found = []
    for package in ("pyiqa", "torchmetrics", "torch-fidelity"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return found


@METRIC_REGISTRY.register()
@_needs("lower")
def lpips(
    img: Array, img2: Array, crop_border: NotNegative = 0, package: Package = "pyiqa", fetch: bool = False
) -> float:
    """Return LPIPS with AlexNet (Zhang et al., CVPR 2018): a perceptual distance, lower is better.

    Args:
        img: (H, W, 3) BGR, values in [0, 255].
        img2: The same shape.
        crop_border: Pixels left out at each edge.
        package: ``pyiqa`` (no commercial use) or ``torchmetrics`` (Apache-2.0).
        fetch: Download weights that are missing.
    """
    return _measured("lpips", package, fetch, crop_border, img, img2)


@METRIC_REGISTRY.register()
@_needs("lower")
def dists(
    img: Array, img2: Array, crop_border: NotNegative = 0, package: Package = "pyiqa", fetch: bool = False
) -> float:
    """Return DISTS (Ding et al., TPAMI 2020): a distance of structure and texture, lower is better.

    Args:
        img: (H, W, 3) BGR, values in [0, 255].
        img2: The same shape.
        crop_border: Pixels left out at each edge.
        package: ``pyiqa`` (no commercial use) or ``torchmetrics`` (Apache-2.0).
        fetch: Download weights that are missing.
    """
    return _measured("dists", package, fetch, crop_border, img, img2)


@METRIC_REGISTRY.register()
@_needs("higher", "pyiqa")
def topiq(img: Array, img2: Array, crop_border: NotNegative = 0, fetch: bool = False) -> float:
    """Return TOPIQ with a reference (Chen et al., TIP 2024), by pyiqa (no commercial use): higher is better.

    Args:
        img: (H, W, 3) BGR, values in [0, 255].
        img2: The same shape.
        crop_border: Pixels left out at each edge.
        fetch: Download weights that are missing.
    """
    return _measured("topiq_fr", "pyiqa", fetch, crop_border, img, img2)


@METRIC_REGISTRY.register()
@_needs("higher", "pyiqa")
def musiq(img: Array, img2: Array | None = None, crop_border: NotNegative = 0, fetch: bool = False) -> float:
    """Return MUSIQ (Ke et al., ICCV 2021), without GT image, by pyiqa (no commercial use): higher is better.

    Args:
        img: (H, W, 3) BGR, values in [0, 255].
        img2: Not used.
        crop_border: Pixels left out at each edge.
        fetch: Download weights that are missing.
    """
    return _measured("musiq", "pyiqa", fetch, crop_border, img)


@METRIC_REGISTRY.register()
@_needs("higher", "pyiqa")
def clipiqa(img: Array, img2: Array | None = None, crop_border: NotNegative = 0, fetch: bool = False) -> float:
    """Return CLIP-IQA (Wang et al., AAAI 2023), without GT image, by pyiqa (no commercial use): higher is better.

    Args:
        img: (H, W, 3) BGR, values in [0, 255].
        img2: Not used.
        crop_border: Pixels left out at each edge.
        fetch: Download weights that are missing.
    """
    return _measured("clipiqa", "pyiqa", fetch, crop_border, img)


@METRIC_REGISTRY.register()
@_needs("higher", "pyiqa")
def pyiqa(
    img: Array, img2: Array | None = None, metric: str = "topiq_nr", crop_border: NotNegative = 0, fetch: bool = False
) -> float:
    """Return any metric of pyiqa (no commercial use), by pyiqa's name.

    Args:
        img: (H, W, 3) BGR, values in [0, 255].
        img2: The same shape; metrics without reference do not use it.
        metric: The name, such as ``topiq_nr``, ``maniqa`` or ``ms_ssim``.
        crop_border: Pixels left out at each edge.
        fetch: Download weights that are missing.
    """
    return _measured(metric, "pyiqa", fetch, crop_border, img, img2)


def _measured(name: str, package: str, fetch: bool, crop: int, img: Array, img2: Array | None = None) -> float:
    """Return a metric of (H, W, C) BGR images in [0, 255].

    Raises:
        OptionError: the package or its weights are missing, or it has no metric of this name.
        DataError: the images differ in size, or the metric needs a GT image and there is none.
    """
    with _BUILDING:
        function, lowest = _built(name, package, fetch)
    if img2 is not None and img.shape != img2.shape:
        raise DataError(f"metric {name}: the two images must have the same shape, not {img.shape} and {img2.shape}")
    images = [_tensor(image, crop) for image in (img, img2) if image is not None]
    if lowest > len(images):
        raise DataError(f"metric {name} needs a GT image")
    import torch

    from safmn.runtime.execution import comparable_convolutions

    with torch.no_grad(), comparable_convolutions():
        return float(function(*images))


def _tensor(image: Array, crop: int) -> Tensor:
    """Return a BGR or grey image as (1, 3, H, W) RGB in [0, 1]."""
    import torch

    height, width = image.shape[:2]
    image = image.reshape(height, width, -1)[crop : height - crop, crop : width - crop]
    tensor = torch.from_numpy(image[..., ::-1].copy()).float().div(255)  # (H, W, C)
    return tensor.permute(2, 0, 1)[None].expand(1, 3, -1, -1)


@functools.cache
def _built(name: str, package: str, fetch: bool) -> tuple[Callable[..., Any], int]:
    """Build a metric once: a function of one or two images, and how many it needs."""
    make = _by_pyiqa if package == "pyiqa" else _by_torchmetrics
    return built_quietly(lambda: make(name), name, (package,), fetch)


def built_quietly(make: Callable[[], _Made], metric: str, packages: Sequence[str], fetch: bool) -> _Made:
    """Return what ``make`` makes with optional packages.

    Args:
        make: makes it; it imports the packages.
        metric: name of the metric, for messages.
        packages: the packages; the first is the one that messages name.
        fetch: let it download weights that are missing.

    Raises:
        OptionError: a package or its weights are missing, or ``make`` fails.
    """
    for package in packages:
        if (sentence := missing(package)) is not None:
            raise OptionError(f"metric {metric} {sentence}")
    from safmn import compat
    from safmn.metrics.fetching import only_local_files

    compat.repair_torchvision()
    try:
        importlib.import_module(packages[0])
        with (
            contextlib.nullcontext() if fetch else only_local_files(f"metric {metric}"),
            contextlib.redirect_stdout(io.StringIO()),  # pyiqa prints where it loads weights from
        ):
            return make()
    except UserError:
        raise
    except ImportError as error:
        text = f"the package {packages[0]} cannot be imported: {first_line(error)}"
        raise OptionError(f"metric {metric}: {text}") from error
    except Exception as error:  # the packages raise what their own dependencies raise
        text = f"metric {metric} of {packages[0]} cannot be built: {type(error).__name__}: {first_line(error)}"
        raise OptionError(text) from error


def _by_pyiqa(name: str) -> tuple[Callable[..., Any], int]:
    iqa = importlib.import_module("pyiqa")
    known = iqa.list_models()
    if name not in known:
        raise OptionError(f"pyiqa has no metric {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
    if name in OF_SETS:
        raise OptionError(f"pyiqa's {name} measures whole sets, not images: {OF_SETS[name]}")
    say_licence()
    from safmn.runtime.execution import named_device

    device = named_device("auto")
    metric = iqa.create_metric(name, device=device)
    reference = metric.metric_mode == "FR"

    def measure(*images: Tensor) -> Any:
        return metric(*(image.to(device) for image in images[: 2 if reference else 1]))

    return measure, 2 if reference else 1


@functools.cache
def say_licence() -> None:
    """Say once under which licence pyiqa computes."""
    facts = importlib.metadata.metadata("pyiqa")
    licence = next((facts[key] for key in ("License-Expression", "License") if key in facts), "see its documents")
    logger.warning("pyiqa %s computes metrics; its licence is %s: no commercial use", facts["Version"], licence)


def _by_torchmetrics(name: str) -> tuple[Callable[..., Any], int]:
    if name not in _TORCHMETRICS:
        raise OptionError(f"torchmetrics has no metric {name!r} here; known: {', '.join(_TORCHMETRICS)}")
    from safmn.runtime.execution import named_device

    module, kind, arguments = _TORCHMETRICS[name]
    device = named_device("auto")
    metric = getattr(importlib.import_module(module), kind)(**arguments).to(device).eval()

    def measure(*images: Tensor) -> Any:
        metric.reset()
        return metric(*(image.to(device) for image in images))

    return measure, 2
