"""BasicSR's degradation (``RealESRGANDataset`` and ``RealESRNetModel.feed_data``) made to run on the CPU.

Inside a block of :func:`on_cpu`, ``.cuda()`` returns the tensor itself, and ``filter2D`` gets contiguous tensors, since
its ``view`` fails on the output of DiffJPEG. BasicSR is otherwise unchanged.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.registry import DATASET_REGISTRY  # importing safmn first makes basicsr importable

basicsr_model: Any = importlib.import_module("basicsr.models.realesrnet_model")
basicsr_utils: Any = importlib.import_module("basicsr.utils")

# The values in the option files of SAFMN and Real-ESRGAN for stage 1.
PUBLISHED: dict[str, Any] = {
    "gt_usm": True,
    "resize_prob": [0.2, 0.7, 0.1],
    "resize_range": [0.15, 1.5],
    "gaussian_noise_prob": 0.5,
    "noise_range": [1, 30],
    "poisson_scale_range": [0.05, 3],
    "gray_noise_prob": 0.4,
    "jpeg_range": [30, 95],
    "second_blur_prob": 0.8,
    "resize_prob2": [0.3, 0.4, 0.3],
    "resize_range2": [0.3, 1.2],
    "gaussian_noise_prob2": 0.5,
    "noise_range2": [1, 25],
    "poisson_scale_range2": [0.05, 2.5],
    "gray_noise_prob2": 0.4,
    "jpeg_range2": [10, 95],
}
_FAMILIES = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
PUBLISHED_BLUR: dict[str, Any] = {
    f"{key}{suffix}": value
    for suffix, sigma in (("", [0.2, 3]), ("2", [0.2, 1.5]))
    for key, value in {
        "blur_kernel_size": 21,
        "kernel_list": _FAMILIES,
        "kernel_prob": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
        "sinc_prob": 0.1,
        "blur_sigma": sigma,
        "betag_range": [0.5, 4],
        "betap_range": [1, 2],
    }.items()
} | {"final_sinc_prob": 0.8}


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Make BasicSR's degradation run on the CPU inside the block."""
    cuda, filter2d = Tensor.cuda, basicsr_model.filter2D
    Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    basicsr_model.filter2D = lambda image, kernel: filter2d(image.contiguous(), kernel)
    try:
        yield
    finally:
        Tensor.cuda = cuda  # type: ignore[method-assign]
        basicsr_model.filter2D = filter2d


def dataset(photos: Path, names: list[str], meta_info: Path, **blur: Any) -> Any:
    """Write the names to ``meta_info``, and return BasicSR's data set of these images of the folder ``photos``."""
    meta_info.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    options = {
        "dataroot_gt": str(photos),
        "meta_info": str(meta_info),
        "io_backend": {"type": "disk"},
        "use_hflip": True,
        "use_rot": False,
        **PUBLISHED_BLUR,
        **blur,
    }
    return DATASET_REGISTRY.get("RealESRGANDataset_basicsr")(options)


def model(*, scale: int, gt_size: int, queue_size: int = 180, **changes: Any) -> Any:
    """Return BasicSR's model without networks and optimisers, which ``feed_data`` does not need."""
    bare = object.__new__(basicsr_model.RealESRNetModel)
    bare.opt = {**PUBLISHED, "scale": scale, "gt_size": gt_size, **changes}
    bare.device, bare.is_train, bare.queue_size = torch.device("cpu"), True, queue_size
    bare.jpeger, bare.usm_sharpener = basicsr_utils.DiffJPEG(differentiable=False), basicsr_utils.USMSharp()
    return bare


@contextlib.contextmanager
def watch_stages(seen: Callable[[str, Tensor, Tensor], None], bare: Any) -> Iterator[None]:
    """Call ``seen(name, before, after)`` after every noise and JPEG step of ``feed_data`` inside the block."""
    noises = ("random_add_gaussian_noise_pt", "random_add_poisson_noise_pt")
    originals: Mapping[str, Any] = {name: getattr(basicsr_model, name) for name in noises}
    jpeger = bare.jpeger

    def watched(name: str, step: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(image: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
            result = step(image, *arguments, **keywords)
            seen(name, image, result)
            return result

        return run

    for name, original in originals.items():
        setattr(basicsr_model, name, watched("noise", original))
    bare.jpeger = watched("jpeg", jpeger)
    try:
        yield
    finally:
        bare.jpeger = jpeger
        for name, original in originals.items():
            setattr(basicsr_model, name, original)
