"""The sections of a report about tests: means, every image with the worst first, pictures, error maps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from tqdm import tqdm

from safmn.imaging.file_names import image_name
from safmn.report import widgets
from safmn.report.comparable import incomparable
from safmn.report.page import JPEG_QUALITY, MAX_SIDE, Page, middle
from safmn.report.results import Test
from safmn.report.scenes import Scene, SourceImages, detail_of, home_of, open_saved
from safmn.report.training import gt_views, other_size, reference_views, unit_of
from safmn.report.widgets import View, note, number
from safmn.value_types import Array

ERROR_RANGE = 32
"""Level of an error map's brightest colour: mean absolute difference of the channels, of 0 to 255."""

_DECIMALS = {"psnr": 3}


@dataclass(frozen=True)
class Method:
    """What a page shows of one method on one set.

    Attributes:
        name: its name.
        scores: image -> metric -> value.
        mean: metric -> mean.
    """

    name: str
    scores: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]

    def of_images(self) -> list[str]:
        """Return the metrics that have values of single images: all but those of whole sets."""
        return [metric for metric in self.mean if any(metric in scores for scores in self.scores.values())]


def add_tests(page: Page, tests: Sequence[Test], *, images: int) -> None:
    """Add the means of all tests and, for each set, its images with the worst first.

    Args:
        images: so many of each set's worst images are shown as pictures.
    """
    page.add_section("Results", _means(tests))
    for set_name in dict.fromkeys(name for test in tests for name in test.sets):
        having = [test for test in tests if set_name in test.sets]
        methods = [Method(test.name, test.sets[set_name].per_image, test.sets[set_name].mean) for test in having]
        lower = _lower_is_better(tests)
        reasons = incomparable(having, [metric for method in methods for metric in method.mean])
        content = per_image_table(methods, lower, incomparable_metrics=reasons)
        page.add_section(set_name, content + _pictures(page, having, set_name, methods, lower, images))
    page.add_section("How it was tested", _facts(tests))


def _lower_is_better(tests: Sequence[Test]) -> set[str]:
    metrics = {metric for test in tests for scored in test.sets.values() for metric in scored.mean}
    return {metric for metric in metrics if any(test.better(metric) == "lower" for test in tests)}


def _means(tests: Sequence[Test]) -> str:
    metrics = list(dict.fromkeys(m for test in tests for scored in test.sets.values() for m in scored.mean))
    lower = _lower_is_better(tests)
    header = ["set", "test", "images"]
    published = {m for test in tests for scored in test.sets.values() for m in scored.published}
    for metric in metrics:
        header += [metric, f"{metric} published"] if metric in published else [metric]
    rows: list[list[object]] = []
    best: dict[tuple[str, str], float] = {}
    reasons = incomparable(tests, metrics)
    for set_name in dict.fromkeys(name for test in tests for name in test.sets):
        for metric in (each for each in metrics if each not in reasons):
            values = [t.sets[set_name].mean.get(metric, math.nan) for t in tests if set_name in t.sets]
            finite = [value for value in values if not math.isnan(value)]
            if len(finite) > 1:
                best[set_name, metric] = (min if metric in lower else max)(finite)
    marked = {}
    for set_name in dict.fromkeys(name for test in tests for name in test.sets):
        for test in tests:
            if set_name not in test.sets:
                continue
            scored = test.sets[set_name]
            row: list[object] = [set_name, test.name, (len(scored.per_image), str(len(scored.per_image)))]
            for metric in metrics:
                value = scored.mean.get(metric, math.nan)
                if best.get((set_name, metric)) == value:
                    marked[len(rows), len(row)] = "best"
                row.append(number(value, decimals(metric)))
                if metric in published:
                    row.append(number(scored.published.get(metric), 2 if decimals(metric) == 3 else 4))
            rows.append(row)
    failed = [*dict.fromkeys(reasons.values())]
    failed += [f"{test.name}, {text}" for test in tests for text in test.failed.values()]
    return widgets.table(header, rows, marked=marked) + "".join(note(text, warning=True) for text in failed)


def decimals(metric: str) -> int:
    """Return how many decimals of a metric are shown: 3 of PSNR, 4 of others."""
    return next((count for name, count in _DECIMALS.items() if name in metric.lower()), 4)


def worst_first(methods: Sequence[Method], lower_is_better: set[str]) -> list[str]:
    """Return the images by the first metric of the first method, worst first; images without a value come last."""
    first = methods[0]
    metric = next(iter(first.of_images()), "")
    sign = -1 if metric in lower_is_better else 1

    def key(image: str) -> tuple[bool, float]:
        value = first.scores.get(image, {}).get(metric, math.nan)
        return math.isnan(value), 0.0 if math.isnan(value) else sign * value

    names = dict.fromkeys(image for method in methods for image in method.scores)
    return sorted(names, key=key)


def per_image_table(
    methods: Sequence[Method], lower_is_better: set[str], *, incomparable_metrics: Collection[str] = ()
) -> str:
    """Return a table with a row for each image, worst first, a column for each method and metric.

    Of several methods, the best value of each image is marked, unless a metric is not comparable.
    """
    metrics = list(dict.fromkeys(metric for method in methods for metric in method.of_images()))
    header = ["image"]
    header += [metric if len(methods) == 1 else f"{metric}, {m.name}" for metric in metrics for m in methods]
    rows: list[list[object]] = []
    marked = {}
    for image in worst_first(methods, lower_is_better):
        row: list[object] = [image]
        for metric in metrics:
            values = [method.scores.get(image, {}).get(metric, math.nan) for method in methods]
            finite = [value for value in values if not math.isnan(value)]
            best = (min if metric in lower_is_better else max)(finite) if len(finite) > 1 else None
            best = None if metric in incomparable_metrics else best
            for value in values:
                if best is not None and value == best:
                    marked[len(rows), len(row)] = "best"
                row.append(number(value, decimals(metric)))
        rows.append(row)
    ascending = not (metrics and metrics[0] in lower_is_better)
    return widgets.table(header, rows, sort=(1, ascending) if metrics else None, marked=marked, limit=20)


def error_map(image: Array, gt: Array) -> Array:
    """Return where an image differs from the GT, uint8 (H, W, 3) RGB: black is 0, the brightest ``ERROR_RANGE``."""
    difference = np.abs(image.astype(np.float32) - gt).mean(axis=-1)
    levels = (difference.clip(0, ERROR_RANGE) * (255 / ERROR_RANGE)).round().astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB))


def scores_text(scores: Mapping[str, float]) -> str:
    """Return the scores of one image in one line."""
    texts = {metric: f"{metric} {value:.{decimals(metric) - 1}f} {unit_of(metric)}" for metric, value in scores.items()}
    return ", ".join(text.rstrip() for text in texts.values())


def method_scene(
    page: Page, scene: Scene, outputs: Mapping[str, Array], scores: Mapping[str, str], scale: int, *, title: str = ""
) -> str:
    """Return the comparison of what methods made of an image: LQ, bicubic, outputs, GT and error maps.

    It begins with the part in which the methods, or one method and the GT, differ most.

    Args:
        outputs: method -> uint8 (H, W, 3) RGB, all of the same size; at least one.
        scores: method -> text below its picture.
        title: heading; without it, the image's name.
    """
    size = next(iter(outputs.values())).shape[:2]
    views = [view for view in reference_views(page, scene, scale, size) if view.label not in outputs]
    first = len(views)
    for name, pixels in outputs.items():
        if (key := page.image(middle(pixels))) is not None:
            views.append(View(name, {0: key}, {0: scores.get(name, "")}))
    last = len(views) - 1
    views += gt_views(page, scene, size)
    if views and views[-1].label == "GT" and scene.gt is not None:
        for name, pixels in outputs.items():
            key = page.image(middle(error_map(pixels, scene.gt[: size[0], : size[1]])))
            views += [] if key is None else [View(f"error of {name}", {0: key})]
    if last < 0:
        return ""
    shown = middle(next(iter(outputs.values())))
    compared = [middle(pixels) for pixels in outputs.values()]
    fits = scene.gt is not None and scene.gt.shape[0] >= size[0] and scene.gt.shape[1] >= size[1]
    box = detail_of(compared, middle(scene.gt[: size[0], : size[1]]) if fits and scene.gt is not None else None)
    before = last - 1 if last > first else max(first - 1, 0)
    after = last if last != before else min(before + 1, len(views) - 1)
    return widgets.comparison(
        title or scene.image,
        views,
        size=shown.shape[:2],
        detail=box,
        before=before,
        after=after,
        begin_with_detail=True,
    )


def _pictures(
    page: Page, tests: Sequence[Test], set_name: str, methods: Sequence[Method], lower: set[str], count: int
) -> str:
    owner = tests[0]
    sources = SourceImages(home_of(owner.root), owner.scale, int(owner.options.get("manual_seed") or 0))
    section = next((test.sets[set_name].data for test in tests if test.sets[set_name].data), {})
    order = worst_first(methods, lower)
    saved = [image for image in order if any(test.picture(set_name, image) for test in tests)]
    if not saved:
        return note("This test saved no images. val.save_img: true, or safmn test --save_img, saves them.")
    parts, before = [], page.left_out
    for image in tqdm(saved[:count], desc=f"images of {set_name}", unit="image", disable=None):
        scene = sources.scene(set_name, image, section)
        outputs: dict[str, Array] = {}
        for test in tests:
            path = test.picture(set_name, image)
            pixels = None if path is None else open_saved(path)
            first = next(iter(outputs.values()), pixels)
            if pixels is None or first is None:
                continue
            if pixels.shape == first.shape:
                outputs[test.name] = pixels
            else:
                sources.notes.append(other_size(test.name, set_name, (pixels.shape[:2], first.shape[:2])))
        scores = {m.name: scores_text(m.scores[image]) for m in methods if image in m.scores}
        if outputs:
            parts.append(method_scene(page, scene, outputs, scores, owner.scale, title=image_name(image)))
    notes = [*sources.notes]
    if page.left_out > before:
        notes.append(f"{page.left_out - before} pictures are left out because of the size limit (--size).")
    shown = f"The {len(parts)} worst of {len(order)} images" if len(parts) < len(order) else "All images, worst first"
    text = (
        f"{shown}, each with the part that differs most. In error maps, black is no difference from the GT, and the "
        f"brightest colour {ERROR_RANGE} levels of 255 or more. Pictures are JPEG of quality {JPEG_QUALITY}, and "
        f"the middle {MAX_SIDE} pixels of larger images; scores are of the whole images."
    )
    return note(text) + "".join(note(each, warning=True) for each in dict.fromkeys(notes)) + "".join(parts)


def _facts(tests: Sequence[Test]) -> str:
    parts = []
    for test in tests:
        pairs: dict[str, object] = {}
        for key, value in test.facts.items():
            if key == "versions" and isinstance(value, Mapping):
                pairs |= value
            elif value is not None:
                pairs[key] = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        parts.append(f"<h3>{widgets.escape(test.name)}</h3>" + widgets.facts(pairs))
    return "".join(parts)
