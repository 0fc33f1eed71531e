"""The sections of a report about training runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from safmn.metrics import psnr
from safmn.options.differences import MISSING, differences, to_yaml
from safmn.report import widgets
from safmn.report.comparable import incomparable, scale_of, scales_of
from safmn.report.page import JPEG_QUALITY, MAX_SIDE, Page, middle
from safmn.report.runs import Points, Run, age
from safmn.report.scenes import (
    FIRST_IMAGE,
    SavedImages,
    Scene,
    detail_of,
    named_images,
    open_saved,
    sources_of,
    validation_sections,
)
from safmn.report.widgets import Curve, View, chart, note, number
from safmn.value_types import Array

STEPS = 8
"""Iterations of each validation image that are embedded, spread evenly."""


def add_training(page: Page, runs: Sequence[Run], *, images: int) -> None:
    """Add everything about training runs. ``Page.series`` must begin with their names.

    Args:
        images: at most this many validation images of each set.
    """
    page.add_section("Runs", _overview(runs))
    page.add_section("Losses and learning rate", _losses(runs))
    if any(run.scores for run in runs):
        page.add_section("Validation", _validation(runs))
    page.add_section("Speed", _speed(runs))
    page.add_section("Validation images", _pictures(page, runs, images))
    page.add_section("Options", _options(runs))
    page.add_section("Environment", _environment(runs))
    page.add_section("Skipped steps", _skipped(runs))


def _overview(runs: Sequence[Run]) -> str:
    with_scale = len(scales_of(runs)) > 1
    header = ["run", *(["scale"] if with_scale else []), "iteration", "last written"]
    header += ["last loss", "s / iteration", "skipped"]
    rows: list[list[object]] = []
    for run in runs:
        total, scale = run.total, scale_of(run)
        done = f"{run.iteration:,}" + (f" of {total:,} ({100 * run.iteration / total:.0f} %)" if total else "")
        row: list[object] = [run.name, *([number(scale, 0)] if with_scale else [])]
        row += [(run.iteration, done), (-run.changed, age(run.changed))]
        last = [points[-1][1] for points in run.losses.values() if points]
        seconds = statistics.median(value for _, value in run.seconds) if run.seconds else None
        row += [number(sum(last) if last else None, 5), number(seconds, 4), (len(run.skipped), str(len(run.skipped)))]
        rows.append(row)
    notes = "".join(note(f"{run.name}: {text}", warning=True) for run in runs for text in run.notes)
    return widgets.table(header, rows) + notes


def _best_results(runs: Sequence[Run]) -> str:
    """Return the table of the best validation results. Its rows are the runs or the metrics, whichever are more."""
    runs = [run for run in runs if run.scores]
    pairs = list({(name, metric): None for run in runs for name, means in run.scores.items() for metric in means})
    incomparable_metrics = incomparable(runs, list(dict.fromkeys(metric for _, metric in pairs)))
    cells = {(r, p): _best(run, *pair) for r, run in enumerate(runs) for p, pair in enumerate(pairs)}
    marked: dict[tuple[int, int], str] = {}  # (run, pair) -> class
    for p, (_, metric) in enumerate(pairs):
        finite = {r: cells[r, p][0] for r in range(len(runs)) if cells[r, p][0] == cells[r, p][0]}
        if len(finite) > 1 and metric not in incomparable_metrics:
            best = (min if _is_lower_better(runs, metric) else max)(finite.values())
            marked |= {(r, p): "best" for r, value in finite.items() if value == best}
    notes = "".join(note(text, warning=True) for text in dict.fromkeys(incomparable_metrics.values()))
    if len(runs) >= len(pairs):
        header = ["run", *(f"best {metric}, {name}" for name, metric in pairs)]
        rows: list[list[object]] = [[run.name, *(cells[r, p] for p in range(len(pairs)))] for r, run in enumerate(runs)]
        places = {(r, p + 1): kind for (r, p), kind in marked.items()}
    else:
        header = ["best", "of", *(run.name for run in runs)]
        rows = [[metric, name, *(cells[r, p] for r in range(len(runs)))] for p, (name, metric) in enumerate(pairs)]
        places = {(p, r + 2): kind for (r, p), kind in marked.items()}
    return widgets.table(header, rows, marked=places) + notes


def _is_lower_better(runs: Sequence[Run], metric: str) -> bool:
    return any(run.better(metric) == "lower" for run in runs)


def _best(run: Run, set_name: str, metric: str) -> tuple[float, str]:
    points = [(value, iteration) for iteration, value in run.scores.get(set_name, {}).get(metric, []) if value == value]
    if not points:
        return number(None)
    value, iteration = (min if run.better(metric) == "lower" else max)(points, key=lambda point: point[0])
    return value, f"{value:.4f} at {iteration:,}"


def _curves(runs: Sequence[Run], points_of: Mapping[int, Points]) -> list[Curve]:
    return [Curve(index, points_of[index]) for index in range(len(runs)) if points_of.get(index)]


def _losses(runs: Sequence[Run]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.losses)
    marks = [(index, iteration) for index, run in enumerate(runs) for iteration in run.skipped]
    parts = [
        chart(name, _curves(runs, {i: run.losses.get(name, []) for i, run in enumerate(runs)}), noisy=True, marks=marks)
        for name in names
    ]
    parts.append(chart("Learning rate", _curves(runs, {i: run.learning_rate for i, run in enumerate(runs)})))
    skipped = note("Triangles at the axis mark skipped steps.") if marks else ""
    return widgets.chart_controls() + widgets.charts(parts) + skipped


def _validation(runs: Sequence[Run]) -> str:
    pairs = {(name, metric): None for run in runs for name, means in run.scores.items() for metric in means}
    parts = []
    for name, metric in pairs:
        points = {i: run.scores.get(name, {}).get(metric, []) for i, run in enumerate(runs)}
        hint = "lower is better" if _is_lower_better(runs, metric) else ""
        parts.append(chart(f"{metric}, {name}", _curves(runs, points), unit=unit_of(metric), hint=hint))
    return _best_results(runs) + widgets.charts(parts)


def unit_of(metric: str) -> str:
    """Return the unit of a metric: decibels for PSNR, none for others."""
    return "dB" if "psnr" in metric.lower() else ""


def _speed(runs: Sequence[Run]) -> str:
    if not any(run.seconds for run in runs):
        return note("The logs of these runs are missing, so their speed is unknown: record.jsonl has no clock times.")
    parts = [
        chart("Seconds per iteration", _curves(runs, {i: run.seconds for i, run in enumerate(runs)}), noisy=True),
        chart("Waiting for data", _curves(runs, {i: _percent(run.waiting) for i, run in enumerate(runs)}), unit="%"),
    ]
    text = "Means between two lines of the log, by the wall clock. They include validation and saving (the peaks)."
    return widgets.charts(parts) + note(text)


def _percent(points: Points) -> Points:
    return [(iteration, round(100 * value, 3)) for iteration, value in points]


def _pictures(page: Page, runs: Sequence[Run], count: int) -> str:
    saved = {index: named_images(run) for index, run in enumerate(runs)}
    sets = dict.fromkeys(name for each in saved.values() for name in each.of_set)
    if not sets:
        return note("These runs saved no validation images. val.save_img: true saves them.")
    parts, notes = [], []
    for set_name in sets:
        owner = next(run for index, run in enumerate(runs) if set_name in saved[index].of_set)
        sources = sources_of(owner)
        section = validation_sections(owner.options).get(set_name, {})
        names = list(dict.fromkeys(name for each in saved.values() for name in each.of_set.get(set_name, {})))
        chosen = names[:count]
        if len(chosen) < len(names):
            notes.append(f"{set_name}: {len(chosen)} of {len(names)} images are shown; --images N shows more.")
        for name in tqdm(chosen, desc=f"images of {set_name}", unit="image", disable=None):
            scene = sources.scene(set_name, name, section)
            parts.append(_scene(page, runs, saved, scene, sources.scale, notes))
        notes += sources.notes
    if page.left_out:
        notes.append(f"{page.left_out} images are left out because of the size limit (--size).")
    text = (
        f"Up to {STEPS} versions of each image, with the first and the newest. Images are stored as JPEG of quality "
        f"{JPEG_QUALITY}, and the middle {MAX_SIDE} pixels of larger ones. "
        "Scroll with Ctrl, or press + and -, to zoom; drag to move."
    )
    return note(text) + "".join(note(each, warning=True) for each in dict.fromkeys(notes)) + "".join(parts)


def spread(iterations: Sequence[int], count: int = STEPS) -> list[int]:
    """Return at most ``count`` of the iterations, evenly spread, with the first and the last one.

    >>> spread([100, 200, 300, 400, 500], 3)
    [100, 300, 500]
    """
    ordered = sorted(iterations)
    if len(ordered) <= count:
        return ordered
    places = [round(i * (len(ordered) - 1) / (count - 1)) for i in range(count)]
    return [ordered[place] for place in places]


def other_size(name: str, set_name: str, sizes: Sequence[tuple[int, ...]]) -> str:
    """Return the sentence about pictures that are left out, because their size is not that of the others.

    Args:
        sizes: (height, width) of the picture, and of the others.
    """
    one, other = (f"{size[1]}x{size[0]}" for size in sizes)
    where = f"where their size ({one}) is not that of the first one ({other})"
    return f"{set_name}: pictures of {name} are left out {where}."


def _scene(
    page: Page, runs: Sequence[Run], saved: Mapping[int, SavedImages], scene: Scene, scale: int, notes: list[str]
) -> str:
    """Return the comparison of one image: LQ, bicubic, each run's output over time, GT.

    Runs whose output has another size are left out; ``notes`` says so.
    """
    outputs: dict[int, dict[int, Array]] = {}
    for index in range(len(runs)):
        found: Mapping[int, Path | bytes] = saved[index].of_set.get(scene.set_name, {}).get(scene.image, {})
        opened = {iteration: open_saved(found[iteration]) for iteration in spread(list(found))}
        outputs[index] = {iteration: pixels for iteration, pixels in opened.items() if pixels is not None}
    newest = [versions[max(versions)] for versions in outputs.values() if versions]
    if not newest:
        return ""
    size = newest[0].shape[:2]
    views = reference_views(page, scene, scale, size)
    first = len(views)
    for index, run in enumerate(runs):
        others = {pixels.shape[:2]: None for pixels in outputs[index].values() if pixels.shape[:2] != size}
        notes += [other_size(run.name, scene.set_name, (other, size)) for other in others]
        keys = {step: page.image(middle(pixels)) for step, pixels in outputs[index].items() if pixels.shape[:2] == size}
        versions = {step: key for step, key in keys.items() if key is not None}
        if versions:
            views.append(
                View(run.name, versions, {step: psnr_text(outputs[index][step], scene.gt, scale) for step in versions})
            )
    views += gt_views(page, scene, size)
    if not views:
        return ""
    shown = middle(newest[0]).shape[:2]
    same = [middle(pixels) for pixels in newest if pixels.shape[:2] == size]
    fits = scene.gt is not None and scene.gt.shape[0] >= size[0] and scene.gt.shape[1] >= size[1]
    box = detail_of(same, middle(scene.gt[: size[0], : size[1]]) if fits and scene.gt is not None else None)
    name = scene.set_name if scene.image == FIRST_IMAGE else scene.image
    before = 1 if first >= 2 else 0
    after = min(max(first, 1), len(views) - 1)
    return widgets.comparison(f"{scene.set_name}: {name}", views, size=shown, detail=box, before=before, after=after)


def reference_views(page: Page, scene: Scene, scale: int, size: tuple[int, int]) -> list[View]:
    """Return LQ and bicubic of an image, as far as they are known and fit its outputs of this size."""
    if scene.lq is None or (scene.lq.shape[0] * scale, scene.lq.shape[1] * scale) != size:
        return []
    enlarged = scene.bicubic(scale)
    assert enlarged is not None
    if max(size) > MAX_SIDE:  # the LQ pixels of the same middle
        nearest = scene.lq.repeat(scale, axis=0).repeat(scale, axis=1)
        lq = page.image(middle(nearest), lossless=True)
    else:
        lq = page.image(scene.lq, lossless=True)
    views = [] if lq is None else [View("LQ", {0: lq}, pixelated=True)]
    key = page.image(middle(enlarged))
    return views if key is None else [*views, View("bicubic", {0: key}, {0: psnr_text(enlarged, scene.gt, scale)})]


def gt_views(page: Page, scene: Scene, size: tuple[int, int]) -> list[View]:
    """Return the GT as a list of one view; empty if it is unknown or smaller than the outputs."""
    if scene.gt is None or scene.gt.shape[0] < size[0] or scene.gt.shape[1] < size[1]:
        return []
    key = page.image(middle(scene.gt[: size[0], : size[1]]))
    return [] if key is None else [View("GT", {0: key})]


def psnr_text(image: Array, gt: Array | None, scale: int) -> str:
    """Return PSNR on Y as text, with the crop border of the papers; empty without a GT of at least the image's size."""
    if gt is None or gt.shape[0] < image.shape[0] or gt.shape[1] < image.shape[1]:
        return ""
    value = psnr(image, gt[: image.shape[0], : image.shape[1]], crop=scale, y=True)
    return f"PSNR-Y {value:.2f} dB"


def _options(runs: Sequence[Run]) -> str:
    known = [run for run in runs if run.options]
    parts = [note(f"The options of {run.name} are unknown.", warning=True) for run in runs if not run.options]
    if len(known) > 1:
        first, *others = known
        changed: dict[str, tuple[Any, dict[str, Any]]] = {}  # key -> value of the first run, values that differ
        for other in others:
            for key, old, new in differences(first.options, other.options):
                changed.setdefault(key, (old, {}))[1][other.name] = new
        changed.pop("name", None)
        rows: list[list[object]] = []
        marked: dict[tuple[int, int], str] = {}
        for row, (key, (old, news)) in enumerate(changed.items()):
            marked |= {(row, i + 2): "differs" for i, other in enumerate(others) if other.name in news}
            cells = [old, *(news.get(other.name, old) for other in others)]
            rows.append([key, *("(not given)" if cell is MISSING else widgets.value_text(cell) for cell in cells)])
        parts.append(
            widgets.table(["option", *(run.name for run in known)], rows, marked=marked, kind="keys") if rows else ""
        )
        if not rows:
            parts.append(note("The options of these runs are equal, apart from the name."))
    for run in known:
        parts.append(
            widgets.details(f"All options of {run.name}", f"<pre>{widgets.escape(to_yaml(run.options))}</pre>")
        )
    return "".join(parts)


def _environment(runs: Sequence[Run]) -> str:
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    if not keys:
        return note("The logs of these runs do not say where they ran.")
    rows: list[list[object]] = []
    marked: dict[tuple[int, int], str] = {}
    for row, key in enumerate(keys):
        values = [run.environment.get(key, "") for run in runs]
        marked |= {(row, i + 1): "differs" for i, value in enumerate(values) if i and value != values[0]}
        rows.append([key, *values])
    return widgets.table(["", *(run.name for run in runs)], rows, marked=marked)


def _skipped(runs: Sequence[Run]) -> str:
    rows = [
        [run.name, (iteration, f"{iteration:,}"), ", ".join(samples)]
        for run in runs
        for iteration, samples in sorted(run.skipped.items())
    ]
    if not rows:
        return note(
            "No step was skipped. With train.on_nonfinite: skip, a step whose loss or gradient is NaN or Inf does not "
            "change the weights, and the record names its samples."
        )
    counts: dict[str, int] = {}
    for run in runs:
        for samples in run.skipped.values():
            for sample in set(samples):
                counts[sample] = counts.get(sample, 0) + 1
    often = sorted(((sample, count) for sample, count in counts.items() if count > 1), key=lambda item: -item[1])
    text = "In these steps a loss or gradient was NaN or Inf, and the weights stayed as they were."
    repeated = widgets.table(["sample", "skipped steps"], [[s, (c, str(c))] for s, c in often]) if often else ""
    heading = "<h3>Samples in more than one skipped step</h3>" if often else ""
    return note(text) + widgets.table(["run", "iteration", "samples"], rows, limit=50) + heading + repeated
