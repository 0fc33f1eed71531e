"""The work of ``safmn compare`` and ``safmn score``: methods on the same images, paired image by image."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safmn.errors import DataError, OptionError
from safmn.evaluation.applying import in_whole_windows
from safmn.evaluation.crops import Crop, caption, caption_names, check_box, grid, most_different_box
from safmn.evaluation.image_sets import ImageSet, MadeImages, gt_files, open_sets
from safmn.evaluation.method_tables import Results
from safmn.evaluation.methods import Method
from safmn.evaluation.quality import function_of, score, score_dataset
from safmn.evaluation.scoring import SetResult
from safmn.evaluation.tables import Column, Table
from safmn.imaging import list_images, to_uint8
from safmn.imaging.file_names import image_name
from safmn.inference.side_by_side import Box
from safmn.metrics.set_metric import set_metric_of
from safmn.runtime.execution import comparable_convolutions
from safmn.value_types import Array


@dataclass(frozen=True)
class Comparison:
    """Methods of one scale, and their scores on the same sets.

    Attributes:
        methods: the methods; the first is the one that others are compared with.
        sets: the sets.
        metrics: name -> section.
        results: the scores.
        device: device of the networks.
    """

    methods: Sequence[Method]
    sets: Sequence[ImageSet]
    metrics: Mapping[str, Mapping[str, Any]]
    results: Results
    device: torch.device


def compare(
    methods: Sequence[Method],
    data: Sequence[str],
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    device: torch.device,
    remember: bool = True,
) -> Comparison:
    """Score methods on sets.

    Raises:
        OptionError: the methods are for different scales, or a network has no weights.
        DataError: a set or an image of a method is missing or does not fit.
    """
    scales = {method.scale for method in methods}
    if len(scales) > 1:
        listed = ", ".join(f"{method.label} x{method.scale}" for method in methods)
        raise OptionError(f"only methods of the same scale can be compared, not {listed}; choose with --scale")
    sets = open_sets(data, next(iter(scales)))
    results: dict[str, dict[str, SetResult]] = {method.key: {} for method in methods}
    for images in sets:
        for method in methods:
            results[method.key][images.name] = score(method, images, metrics, device=device, remember=remember)
    return Comparison(methods, sets, metrics, results, device)


def score_folders(
    folders: Sequence[Path], gt: Path | None, metrics: Mapping[str, Mapping[str, Any]], *, remember: bool = True
) -> tuple[list[Method], Results]:
    """Score folders of images, against GT images of the same names if there are any.

    Raises:
        DataError: a folder has no images, or an image has no counterpart or does not fit.
        OptionError: without GT images no metric is left.
    """
    names = None if gt is None else {image_name(str(path)): path for path in list_images(gt)}
    title = "images" if gt is None else _set_name(gt.resolve())
    methods: list[Method] = []
    results: dict[str, dict[str, SetResult]] = {}
    for folder in folders:
        taken = sum(method.label.partition(" (")[0] == folder.resolve().name for method in methods)
        label = folder.resolve().name + (f" ({taken + 1})" if taken else "")
        method = Method(label, "images", 1, folder=folder, source=str(folder))
        dataset = MadeImages(folder, title, names, 1)
        result = score_dataset(method, dataset, title, metrics, device=torch.device("cpu"), remember=remember)
        if not result.mean:
            raise OptionError("without --gt only metrics that need no GT image can be measured, such as niqe")
        methods.append(method)
        results[method.key] = {title: result}
    return methods, results


def _set_name(gt: Path) -> str:
    """Return the name of the set of a folder of GT images: that of ``Set5/HR`` is Set5."""
    return gt.parent.name if gt.name == "HR" else gt.name


def per_image_table(methods: Sequence[Method], results: Results, metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with a row for each image, and a column for each method and metric; all digits."""
    table = Table("Scores by image", [Column("set"), Column("image")])
    of_images = [metric for metric, section in metrics.items() if set_metric_of(section) is None]
    table.columns += [Column(f"{method.label} {metric}") for method in methods for metric in of_images]
    for name, first in results[methods[0].key].items():
        for image in first.per_image:
            scores = [results[method.key][name].per_image.get(image, {}) for method in methods]
            cells = [repr(each[metric]) if metric in each else "" for each in scores for metric in of_images]
            table.rows.append([name, image, *cells])
    return table


def crop_grid(comparison: Comparison, *, image: str | None = None, box: Box | None = None) -> tuple[Array, str, Box]:
    """Draw the grid of crops of one image.

    Args:
        comparison: the comparison.
        image: the image's name, or ``SET/NAME``; None: the one whose scores differ most between the methods.
        box: the box; None: where the methods' images differ most.

    Returns:
        uint8 (H, W, 3) RGB, the name of the image, and the box.

    Raises:
        DataError: there is no such image, or the box is not inside it.
    """
    set_name, name = _find(comparison, image) if image is not None else most_different_image(comparison)
    images = next(each for each in comparison.sets if each.name == set_name)
    gt, outputs = outputs_of(comparison, images, name)
    height, width = (min(each.shape[axis] for each in outputs) for axis in (0, 1))
    outputs, gt = [each[:height, :width] for each in outputs], gt[:height, :width]
    if box is None:
        box = most_different_box(outputs, gt)
    check_box(box, gt)
    scores = [comparison.results[method.key][set_name].per_image[name] for method in comparison.methods]
    crops = [
        Crop(method.label, caption(each), output)
        for method, each, output in zip(comparison.methods, scores, outputs, strict=True)
    ]
    metrics = " / ".join(each.upper() for each in caption_names(scores[0]))
    picture = grid(gt, crops, box, name=f"{name} ({set_name}), x{images.scale}", metrics=metrics)
    return picture, f"{set_name}/{name}", box


def _find(comparison: Comparison, image: str) -> tuple[str, str]:
    first = comparison.results[comparison.methods[0].key]
    for set_name, result in first.items():
        for name in result.per_image:
            if image in (name, f"{set_name}/{name}"):
                return set_name, name
    known = ", ".join([name for result in first.values() for name in result.per_image][:20])
    raise DataError(f"--image {image}: there is no such image. Images: {known}")


def most_different_image(comparison: Comparison) -> tuple[str, str]:
    """Return set and name of the image whose first score differs most between the methods."""
    of_images = [m for m, section in comparison.metrics.items() if set_metric_of(section) is None]
    metric = next(iter(of_images), "")
    spread: dict[tuple[str, str], float] = {}
    for set_name, result in comparison.results[comparison.methods[0].key].items():
        for name in result.per_image:
            scores = [comparison.results[m.key][set_name].per_image[name].get(metric) for m in comparison.methods]
            found = [value for value in scores if value is not None and np.isfinite(value)]
            spread[set_name, name] = statistics.pstdev(found) if found else 0.0
    return max(spread, key=lambda key: spread[key])


def outputs_of(comparison: Comparison, images: ImageSet, name: str) -> tuple[Array, list[Array]]:
    """Return the GT image and each method's image, uint8 (H, W, 3) RGB."""
    gt: Array | None = None
    found = []
    for method in comparison.methods:
        dataset: Any = images.open()
        if method.kind == "images":
            assert method.folder is not None
            dataset = MadeImages(method.folder, images.name, gt_files(images), images.scale)
        item = dataset[dataset.names.index(name)]
        with torch.no_grad(), comparable_convolutions():
            output = in_whole_windows(function_of(method), item["lq"][None].to(comparison.device))
        found.append(to_uint8(output[0].float().cpu()))
        if gt is None or item["gt"].shape[1] < gt.shape[0]:
            gt = to_uint8(item["gt"])
    assert gt is not None
    return gt, found
