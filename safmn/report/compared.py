"""The page of ``safmn compare --report``: the table, every image, and pictures of what the methods made."""

from __future__ import annotations

import math
import re

from tqdm import tqdm

from safmn.evaluation.comparison import Comparison, outputs_of
from safmn.evaluation.metric_choice import is_lower_better
from safmn.evaluation.tables import Table
from safmn.imaging import to_uint8
from safmn.report import widgets
from safmn.report.page import Page
from safmn.report.scenes import Scene
from safmn.report.scores import Method, method_scene, per_image_table, scores_text, worst_first

_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+")


def comparison_page(comparison: Comparison, table: Table, *, images: int = 6, megabytes: float = 24.0) -> Page:
    """Return a comparison as a page.

    Args:
        comparison: the comparison.
        table: its table (:func:`safmn.evaluation.method_tables.method_table`).
        images: so many of each set's worst images are shown as pictures.
        megabytes: limit of all embedded images together.
    """
    page = Page(table.title, ", ".join(method.label for method in comparison.methods), megabytes=megabytes)
    notes = "".join(widgets.note(each) for each in table.notes)
    page.add_section("Results", widgets.table([c.heading for c in table.columns], _cells(table)) + notes)
    lower = {metric for metric, section in comparison.metrics.items() if is_lower_better(section)}
    for image_set in comparison.sets:
        results = {method.label: comparison.results[method.key][image_set.name] for method in comparison.methods}
        methods = [Method(label, result.per_image, result.mean) for label, result in results.items()]
        content = per_image_table(methods, lower)
        shown = worst_first(methods, lower)[:images]
        dataset = image_set.open()
        for name in tqdm(shown, desc=f"images of {image_set.name}", unit="image", leave=False, disable=None):
            gt, outputs = outputs_of(comparison, image_set, name)
            height, width = (min(each.shape[axis] for each in outputs) for axis in (0, 1))
            lq = to_uint8(dataset[dataset.names.index(name)]["lq"])
            scene = Scene(image_set.name, name, lq, gt[:height, :width])
            shown_as = [
                "bicubic" if m.kind == "bicubic" else m.label for m in comparison.methods
            ]  # replaces the page's
            pictures = {label: each[:height, :width] for label, each in zip(shown_as, outputs, strict=True)}
            scores = {label: scores_text(m.scores[name]) for label, m in zip(shown_as, methods, strict=True)}
            content += method_scene(page, scene, pictures, scores, image_set.scale, title=name)
        if len(shown) < len(dataset):
            content += widgets.note(f"Pictures of the {len(shown)} worst of {len(dataset)} images.")
        page.add_section(image_set.name, content)
    if page.left_out:
        page.add_section(
            "Left out", widgets.note(f"{page.left_out} pictures, because of the size limit.", warning=True)
        )
    return page


def _cells(table: Table) -> list[list[object]]:
    """Return the cells of a table; those that begin with a number are sorted by it."""
    return [[row[0], *(_cell(cell) for cell in row[1:])] for row in table.rows]


def _cell(text: str) -> object:
    found = _NUMBER.match(text)
    return (float(found[0].replace(",", "")), text) if found else (math.nan, text)
