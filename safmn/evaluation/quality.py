"""Score methods on image sets. Scores are kept (:mod:`safmn.evaluation.score_cache`): only new ones are measured."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import safmn
from safmn.errors import OptionError
from safmn.evaluation.bicubic import bicubic
from safmn.evaluation.fast_network import fastest
from safmn.evaluation.image_sets import ImageSet, MadeImages, gt_files
from safmn.evaluation.methods import Method
from safmn.evaluation.score_cache import ScoreCache, file_digest
from safmn.evaluation.scorer import mean_of
from safmn.evaluation.scoring import SetResult, evaluate
from safmn.imaging import list_images
from safmn.metrics.set_metric import set_metric_of
from safmn.registry import METRIC_REGISTRY, find
from safmn.runtime.execution import Precision


def score(
    method: Method,
    images: ImageSet,
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    device: torch.device,
    precision: Precision = "fp32",
    remember: bool = True,
) -> SetResult:
    """Score a method on a set, as ``safmn test`` does, by the names of the GT images.

    Args:
        method: a trained network, images or bicubic.
        images: the set.
        metrics: name -> section, as in ``val.metrics`` of an option file.
        device: device of the network.
        precision: ``bf16`` and ``fp16`` run the network under autocast.
        remember: use scores that were measured before, and keep new ones.

    Raises:
        DataError: an image is missing, unreadable or does not fit, or the network or a metric fails.
        OptionError: the network has no weights.
    """
    if not method.trained:
        raise OptionError(f"{method.label}: there are no weights to score; give {method.label}=FILE")
    if method.kind == "images":
        assert method.folder is not None
        dataset: Any = MadeImages(method.folder, images.name, gt_files(images), images.scale)
    else:
        dataset = images.open()
    return score_dataset(method, dataset, images.name, metrics, device=device, precision=precision, remember=remember)


def score_dataset(
    method: Method,
    dataset: Any,
    name: str,
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    device: torch.device,
    precision: Precision = "fp32",
    remember: bool = True,
) -> SetResult:
    """Score a method on an open data set of :mod:`safmn.evaluation.image_sets`; see :func:`score`."""
    start = time.perf_counter()
    cache = ScoreCache(_question(method, device, precision) if remember else None)
    of_sets = [metric for metric, section in metrics.items() if set_metric_of(section) is not None]
    kept_as = {metric: _metric_key(section) for metric, section in metrics.items()}
    images = [file_digest(*dataset.files(index)) for index in range(len(dataset))]
    whole = hashlib.sha256(" ".join(images).encode()).hexdigest()[:32]  # under which metrics of whole sets are kept
    of_set = {m: found for m in of_sets if (found := cache.get(whole, kept_as[m])) is not None}
    values: list[dict[str, float]] = [
        {metric: found for metric, key in kept_as.items() if (found := cache.get(image, key)) is not None}
        for image in images
    ]
    unknown = [metric for metric in of_sets if metric not in of_set]
    of_images = [metric for metric in metrics if metric not in of_sets]
    missing = [i for i, found in enumerate(values) if unknown or any(metric not in found for metric in of_images)]
    if missing:
        wanted = {m: metrics[m] for m in metrics if m in unknown or (m in of_images and _lacking(m, values))}

        def keep(place: int, scores: Mapping[str, float]) -> None:
            index = missing[place]
            for metric, value in scores.items():
                values[index][metric] = value
                cache.put(images[index], kept_as[metric], value)

        run = method.network
        measured = evaluate(
            function_of(method) if run is None or precision != "fp32" else fastest(run, device),
            _Part(dataset, missing),
            name=f"{method.label}, {name}",
            metrics=wanted,
            device=device,
            precision=precision,
            count_garbage=False,
            on_image=keep,
        )
        for metric in unknown:
            if metric in measured.mean:
                of_set[metric] = measured.mean[metric]
                cache.put(whole, kept_as[metric], of_set[metric])
    per_image = {
        image: {m: found[m] for m in metrics if m in found} for image, found in zip(dataset.names, values, strict=True)
    }
    means = _means(per_image) | of_set
    mean = {metric: means[metric] for metric in metrics if metric in means}
    return SetResult(name, per_image, mean, time.perf_counter() - start)


def _lacking(metric: str, values: Sequence[Mapping[str, float]]) -> bool:
    return any(metric not in found for found in values)


def function_of(method: Method) -> Callable[[Tensor], Tensor]:
    """Return the function that maps (1, 3, h, w) in [0, 1] to the method's image; images of other code stay as is."""
    if method.network is not None:
        return method.network
    return bicubic(method.scale) if method.kind == "bicubic" else _unchanged


def _unchanged(image: Tensor) -> Tensor:
    return image


class _Part:
    """Some items of a data set."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self._dataset = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._indices[index]]


def _means(per_image: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for scores in per_image.values():
        for metric, value in scores.items():
            values.setdefault(metric, []).append(value)
    return {metric: mean_of(each) for metric, each in values.items()}


def _question(method: Method, device: torch.device, precision: str) -> dict[str, Any] | None:
    """Return all that a method's scores depend on, for :class:`ScoreCache`; None if it cannot be told."""
    made = "images" if method.kind == "images" else method.identity()
    if made is None:
        return None
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"method": made, "device": where, "precision": precision, "versions": [safmn.__version__, torch.__version__]}


def _metric_key(section: Mapping[str, Any]) -> str:
    """Return the name under which a metric's scores are kept: its section, and the code or version of a foreign one."""
    function = find(METRIC_REGISTRY, section["type"])
    arguments = {key: value for key, value in section.items() if key not in ("better", "fetch")}
    if arguments.get("reference"):  # a folder of images, which may change
        arguments["reference"] = file_digest(*list_images(arguments["reference"]))
    module = inspect.getmodule(function)
    file = getattr(module, "__file__", None)
    own = not function.__module__.startswith(("safmn.", "basicsr."))
    code = file_digest(file) if own and file else getattr(function, "version", lambda: None)()
    return json.dumps([arguments, code], sort_keys=True, default=str)
