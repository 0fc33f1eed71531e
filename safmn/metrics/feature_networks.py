"""Networks that describe an image by one vector, from optional packages, for metrics of whole sets.

Their weights are never downloaded unless ``fetch`` is true; see :mod:`safmn.metrics.fetching`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from safmn.metrics.learned import built_quietly, say_licence
from safmn.runtime.execution import comparable_convolutions, named_device
from safmn.value_types import Array

Describe: TypeAlias = "Callable[[Array], Array]"
"""uint8 (n, H, W, 3) RGB to float32 (n, features)."""

_INCEPTION_SIDE = 299
_CLIP, _CLIP_SIDE = "ViT-L/14@336px", 336
_CLIP_MEAN, _CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@functools.cache
def network(kind: Literal["inception", "clip"], package: str, fetch: bool, metric: str) -> Describe:
    """Return a network, built once.

    Args:
        kind: ``inception`` (Inception v3 of FID, 2048 features) or ``clip`` (ViT-L/14 at 336 pixels, 768 features).
        package: ``torchmetrics`` (resizes as the original FID) or ``pyiqa`` (resizes as clean-fid).
        fetch: download weights that are missing.
        metric: name of the metric, for messages.

    Raises:
        OptionError: the package or its weights are missing.
    """
    makers: dict[tuple[str, str], Callable[[], Describe]] = {
        ("inception", "torchmetrics"): _inception_of_torchmetrics,
        ("inception", "pyiqa"): _inception_of_pyiqa,
        ("clip", "pyiqa"): _clip_of_pyiqa,
    }
    make = makers[kind, package]
    packages = ("torchmetrics", "torch_fidelity") if package == "torchmetrics" else (package,)
    return built_quietly(make, metric, packages, fetch)


def _inception_of_torchmetrics() -> Describe:
    inception = importlib.import_module("torchmetrics.image.fid").NoTrainInceptionV3(
        name="inception-v3-compat", features_list=["2048"]
    )
    return _on_device(inception, lambda images: images.to(torch.uint8))


def _inception_of_pyiqa() -> Describe:
    say_licence()
    inception = importlib.import_module("pyiqa").create_metric("fid", device=torch.device("cpu")).net.model
    return _on_device(lambda x: inception(x, False, False)[0].flatten(1), _as_clean_fid, module=inception)


def _as_clean_fid(images: Tensor) -> Tensor:
    """Resize as clean-fid does, by Pillow's bicubic on unrounded channels; (n, 3, 299, 299) in [-1, 1]."""
    resized = np.empty((*images.shape[:2], _INCEPTION_SIDE, _INCEPTION_SIDE), np.float32)
    for number, image in enumerate(images.numpy().astype(np.float32)):
        for channel, plane in enumerate(image):
            small = Image.fromarray(plane).resize((_INCEPTION_SIDE, _INCEPTION_SIDE), Image.Resampling.BICUBIC)
            resized[number, channel] = np.asarray(small).clip(0, 255)
    return (torch.from_numpy(resized) - 128) / 128


def _clip_of_pyiqa() -> Describe:
    say_licence()
    clip = importlib.import_module("pyiqa.archs.clip_model").load(_CLIP, device="cpu").eval()

    def prepared(images: Tensor) -> Tensor:
        mean, deviation = (torch.tensor(each)[:, None, None] for each in (_CLIP_MEAN, _CLIP_DEVIATION))
        size = (_CLIP_SIDE, _CLIP_SIDE)
        resized = interpolate(images.float() / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
        return (resized - mean) / deviation

    return _on_device(lambda x: normalize(clip.encode_image(x), dim=1), prepared, module=clip)


def _on_device(
    run: Callable[[Tensor], Tensor], prepared: Callable[[Tensor], Tensor], module: torch.nn.Module | None = None
) -> Describe:
    """Return the function from images to vectors; the network runs on a GPU if there is one."""
    owner = run if module is None else module
    assert isinstance(owner, torch.nn.Module)
    device = named_device("auto")
    owner.to(device).eval().requires_grad_(False)

    def describe(images: Array) -> Array:
        tensor = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)  # (n, 3, H, W)
        with torch.no_grad(), comparable_convolutions():
            vectors = run(prepared(tensor).to(device))
        return np.asarray(vectors.float().cpu().numpy())

    return describe


def described(images: Sequence[Array], describe: Describe) -> Array:
    """Return the vectors of images, which may differ in size: (n, features)."""
    vectors: list[Any] = [describe(image[None]) for image in images]
    return np.concatenate(vectors)
