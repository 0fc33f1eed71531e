"""Figures and tables for a paper: curves as vector PDF, a grid of crops, tables in LaTeX and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from safmn.errors import DataError, UserError, first_line
from safmn.evaluation.crops import Crop, caption, caption_names, grid, most_different_box
from safmn.evaluation.scatter import check_installed
from safmn.evaluation.tables import Column, Table, write
from safmn.imaging import write_image
from safmn.inference.side_by_side import Box
from safmn.metrics import psnr, ssim
from safmn.report.build import Sources
from safmn.report.results import Test
from safmn.report.runs import Run
from safmn.report.scenes import SourceImages, home_of, named_images, open_saved, sources_of, validation_sections
from safmn.report.scores import decimals
from safmn.report.training import unit_of
from safmn.system.files import atomic_path
from safmn.value_types import Array

_COLOURS = ("#1f6fd0", "#d1561b", "#1a8a5f", "#a23fa5", "#8a6d00", "#c2255c", "#0b7f95", "#5f5f6b")
_SMOOTHING = 0.6
_WITH_DOTS = 40  # points of a curve that are shown as dots, too; one alone would be no line
_DPI = 300  # of the grid in the PDF


@dataclass(frozen=True)
class _Candidate:
    """An image that can be shown: its set, its name, and the file or content of each method's output."""

    set_name: str
    image: str
    outputs: Mapping[str, Path | bytes]
    spread: float  # of the methods' scores; of one method, how bad its score is


def write_paper(sources: Sources, folder: Path, *, image: str | None = None, box: Box | None = None) -> list[str]:
    """Write everything that the sources allow into a folder, and return what was written, in lines.

    Args:
        image: image of the grid, ``NAME`` or ``SET/NAME``; None: where the methods' scores differ most.
        box: box of the grid, (left, top, right, bottom); None: where the methods differ most.

    Raises:
        UserError: matplotlib is missing, or there is no such image.
    """
    check_installed()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if sources.runs:
        draw_curves(sources.runs, folder / "curves.pdf")
        written += ["curves.pdf", *_tables([runs_table(sources.runs)], folder, "runs")]
    if sources.tests:
        written += _tables([tests_table(sources.tests)], folder, "tests")
        written += _tables([images_table(sources.tests)], folder, "images")
    lines = [str(folder / name) for name in written]
    candidates = list(_test_candidates(sources.tests) if sources.tests else _run_candidates(sources.runs))
    try:
        lines += _write_grid(sources, candidates, folder, image, box)
    except UserError as error:
        if image is not None or box is not None:
            raise
        lines.append(f"no grid of crops: {first_line(error)}")
    return lines


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """Draw losses, learning rate and scores of runs as vector PDF; losses smoothed over their unsmoothed curves."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure

    panels: list[tuple[str, dict[str, Any], bool]] = []
    for name in dict.fromkeys(name for run in runs for name in run.losses):
        panels.append((name, {run.name: run.losses.get(name, []) for run in runs}, True))
    for set_name, metric in {(s, m): None for run in runs for s, means in run.scores.items() for m in means}:
        points = {run.name: run.scores.get(set_name, {}).get(metric, []) for run in runs}
        unit = f" ({unit_of(metric)})" if unit_of(metric) else ""
        panels.append((f"{metric}, {set_name}{unit}", points, False))
    panels.append(("learning rate", {run.name: run.learning_rate for run in runs}, False))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.4 * across, 2.5 * down), layout="constrained")
    FigureCanvasPdf(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, (title, curves, noisy) in zip(axes, panels, strict=False):
        for index, points in enumerate(curves.values()):
            x, y = [i for i, _ in points], [value for _, value in points]
            look: dict[str, Any] = {"color": _COLOURS[index % 8], "linestyle": ("-", "--", ":", "-.")[index // 8 % 4]}
            if noisy:
                axis.plot(x, y, linewidth=0.5, alpha=0.3, **look)
            dots = {"marker": "o", "markersize": 2.5} if len(points) <= _WITH_DOTS else {}
            axis.plot(x, smoothed(y, _SMOOTHING) if noisy else y, linewidth=1.2, **look, **dots)
        axis.set_title(title, fontsize=9, parse_math=False)
        axis.set_xlabel("iteration", fontsize=8)
        axis.tick_params(labelsize=7, which="both")
        axis.grid(alpha=0.3, linewidth=0.5)
        if noisy:
            axis.set_yscale("log")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    lines = figure.axes[0].get_lines()
    handles = lines[1::2] if panels[0][2] else lines  # of noisy curves, the smoothed ones
    labels = [f" {run.name}" for run in runs]  # matplotlib would leave out a name that begins with _
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(runs)), fontsize=8, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # $ in a name is a $
    import matplotlib

    with matplotlib.rc_context({"pdf.fonttype": 42}), atomic_path(path) as temporary:  # fonts that publishers take
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential mean from the first value on, without its pull to zero; NaN stays a gap."""
    total = mass = 0.0
    found = []
    for value in values:
        if math.isfinite(value):
            total, mass = total * weight + value * (1 - weight), mass * weight + (1 - weight)
            found.append(total / mass)
        else:
            found.append(math.nan)
    return found


def runs_table(runs: Sequence[Run]) -> Table:
    """Return the best value of each metric on each set, with its iteration."""
    pairs = {(s, m): None for run in runs for s, means in run.scores.items() for m in means}
    columns = [Column("run"), Column("iterations")]
    for set_name, metric in pairs:
        columns += [Column(f"{metric}, {set_name}"), Column("at iteration")]
    table = Table("Best validation results", columns)
    for run in runs:
        row = [run.name, str(run.iteration)]
        for set_name, metric in pairs:
            points = [point for point in run.scores.get(set_name, {}).get(metric, []) if not math.isnan(point[1])]
            pick = min if run.better(metric) == "lower" else max
            best = pick(points, key=lambda point: point[1]) if points else None
            row += ["", ""] if best is None else [f"{best[1]:.{decimals(metric)}f}", str(best[0])]
        table.rows.append(row)
    return table


def tests_table(tests: Sequence[Test]) -> Table:
    """Return the mean of each metric on each set, beside the published ones."""
    pairs = {(s, m): None for test in tests for s, scored in test.sets.items() for m in scored.mean}
    columns = [Column("method")]
    for set_name, metric in pairs:
        columns += [Column(f"{metric}, {set_name}", "measured"), Column(f"{metric}, {set_name}", "published")]
    table = Table("Results", columns)
    for test in tests:
        row = [test.name]
        for set_name, metric in pairs:
            scored = test.sets.get(set_name)
            for means, digits in (
                ({} if scored is None else scored.mean, decimals(metric)),
                ({} if scored is None else scored.published, 2 if decimals(metric) == 3 else 4),
            ):
                row.append(f"{means[metric]:.{digits}f}" if metric in means else "")
        table.rows.append(row)
    return table.without_empty_columns()


def images_table(tests: Sequence[Test]) -> Table:
    """Return every score of every image, with all digits."""
    metrics = list(dict.fromkeys(m for test in tests for scored in test.sets.values() for m in scored.of_images()))
    columns = [Column("set"), Column("image"), *(Column(f"{metric}, {t.name}") for metric in metrics for t in tests)]
    table = Table("Scores by image", columns)
    for set_name in dict.fromkeys(name for test in tests for name in test.sets):
        names = dict.fromkeys(i for test in tests if set_name in test.sets for i in test.sets[set_name].per_image)
        for name in names:
            scores = [test.sets[set_name].per_image.get(name, {}) if set_name in test.sets else {} for test in tests]
            cells = [repr(each[metric]) if metric in each else "" for metric in metrics for each in scores]
            table.rows.append([set_name, name, *cells])
    return table


def _tables(tables: Sequence[Table], folder: Path, name: str) -> list[str]:
    for ending in (".csv", ".tex"):
        write(tables, folder / f"{name}{ending}")
    return [f"{name}.csv", f"{name}.tex"]


def _test_candidates(tests: Sequence[Test]) -> Iterator[_Candidate]:
    """Yield the images whose outputs all tests of their set saved."""
    for set_name in dict.fromkeys(name for test in tests for name in test.sets):
        having = [test for test in tests if set_name in test.sets]
        metric = next(iter(having[0].sets[set_name].of_images()), "")
        lower = any(test.better(metric) == "lower" for test in having)
        for image in having[0].sets[set_name].per_image:
            files = {test.name: test.picture(set_name, image) for test in having}
            values = [test.sets[set_name].per_image.get(image, {}).get(metric, math.nan) for test in having]
            outputs = {name: path for name, path in files.items() if path is not None}
            if len(outputs) == len(having):
                one = values[0] if lower else -values[0]
                spread = max(values) - min(values) if len(values) > 1 else one
                yield _Candidate(set_name, image, outputs, spread if not math.isnan(spread) else -math.inf)


def _run_candidates(runs: Sequence[Run]) -> Iterator[_Candidate]:
    """Yield the images that all runs saved at validations, in their newest versions, the first image first."""
    saved = {run.name: named_images(run).of_set for run in runs}
    first = saved[runs[0].name] if runs else {}
    for set_name, images in first.items():
        for rank, image in enumerate(images):
            versions = {name: found.get(set_name, {}).get(image, {}) for name, found in saved.items()}
            if all(versions.values()):
                outputs = {name: each[max(each)] for name, each in versions.items()}
                yield _Candidate(set_name, image, outputs, -rank)


def _write_grid(
    sources: Sources, candidates: Sequence[_Candidate], folder: Path, image: str | None, box: Box | None
) -> list[str]:
    chosen = _chosen(candidates, image)
    owner: Run | Test = (sources.tests or sources.runs)[0]
    if isinstance(owner, Test):
        reader = SourceImages(home_of(owner.root), owner.scale, int(owner.options.get("manual_seed") or 0))
    else:
        reader = sources_of(owner)
    scale = reader.scale
    tests = [test for test in sources.tests if chosen.set_name in test.sets]
    section = next((test.sets[chosen.set_name].data for test in tests if test.sets[chosen.set_name].data), {})
    scene = reader.scene(
        chosen.set_name, chosen.image, section or validation_sections(owner.options).get(chosen.set_name, {})
    )
    if scene.gt is None:
        raise DataError(f"{chosen.set_name}/{chosen.image}: no GT image for the grid. {'; '.join(reader.notes)}")
    outputs = {name: open_saved(source) for name, source in chosen.outputs.items()}
    pictures = {name: pixels for name, pixels in outputs.items() if pixels is not None}
    if not pictures:
        raise DataError(f"{chosen.set_name}/{chosen.image}: no output image can be read")
    height, width = (min(each.shape[axis] for each in (scene.gt, *pictures.values())) for axis in (0, 1))
    gt = scene.gt[:height, :width]
    pictures = {name: pixels[:height, :width] for name, pixels in pictures.items()}
    box = box or most_different_box(list(pictures.values()), gt)
    scores = {test.name: test.sets[chosen.set_name].per_image.get(chosen.image, {}) for test in tests if tests} or {
        name: _measured(pixels, gt, scale) for name, pixels in pictures.items()
    }
    names = caption_names(next(iter(scores.values())))
    crops = [Crop(name, caption(scores.get(name, {})), pixels) for name, pixels in pictures.items()]
    enlarged = scene.bicubic(scale)
    if enlarged is not None and enlarged.shape[0] >= height and enlarged.shape[1] >= width:
        enlarged = enlarged[:height, :width]
        shown = _measured(enlarged, gt, scale)
        text = caption({name: shown[name] for name in names if name in shown}) if _as_in_papers(owner, scale) else ""
        crops.insert(0, Crop("bicubic", text, enlarged))
    title = f"{chosen.image} ({chosen.set_name}), x{scale}"
    picture = grid(gt, crops, box, name=title, metrics=" / ".join(name.upper() for name in names))
    write_image(folder / "crops.png", picture)
    with atomic_path(folder / "crops.pdf") as temporary:
        Image.fromarray(picture).save(temporary, "PDF", resolution=_DPI)
    left, top, right, bottom = box
    where = f"{chosen.set_name}/{chosen.image}, --box {left},{top},{right - left},{bottom - top}"
    return [f"{folder / 'crops.png'}: {where}", str(folder / "crops.pdf")]


def _measured(image: Array, gt: Array, scale: int) -> dict[str, float]:
    """Return PSNR and SSIM on Y with the papers' crop border."""
    return {"psnr": psnr(image, gt, crop=scale, y=True), "ssim": ssim(image, gt, crop=scale, y=True)}


def _as_in_papers(owner: Run | Test, scale: int) -> bool:
    """Return whether bicubic's scores on Y are comparable with those of the tests (of runs they are made like them)."""
    if isinstance(owner, Run) or not owner.options:
        return True
    sections = (owner.options.get("val") or {}).get("metrics") or {}
    return all(
        section.get("test_y_channel") is True and section.get("crop_border") == scale
        for section in sections.values()
        if section.get("type") in ("calculate_psnr", "calculate_ssim")
    )


def _chosen(candidates: Sequence[_Candidate], image: str | None) -> _Candidate:
    if not candidates:
        raise UserError(
            "there is no image of which all of them saved their output: val.save_img, or safmn test --save_img, saves "
            "images"
        )
    if image is None:
        return max(candidates, key=lambda each: each.spread)
    found = [each for each in candidates if image in (each.image, f"{each.set_name}/{each.image}")]
    if not found:
        from safmn.errors import did_you_mean

        names = [each.image for each in candidates]
        raise UserError(f"--image {image}: there is no such saved image.{did_you_mean(image.split('/')[-1], names)}")
    if len(found) > 1:
        raise UserError(f"--image {image}: several sets have it; write SET/NAME: {found[0].set_name}/{image}")
    return found[0]
