"""The work of ``safmn bench``: measure methods, and put the results beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from safmn.errors import DataError, OptionError
from safmn.evaluation import metric_choice
from safmn.evaluation.image_sets import BENCHMARK, open_sets
from safmn.evaluation.method_tables import method_table
from safmn.evaluation.methods import Method, open_methods
from safmn.evaluation.paper_tables import Entry, entries, networks_of, paper_table
from safmn.evaluation.published import rows
from safmn.evaluation.quality import score
from safmn.evaluation.scoring import SetResult
from safmn.evaluation.speed import Speed, measure, notes
from safmn.evaluation.speed_sides import Protocol, with_values
from safmn.evaluation.tables import Table
from safmn.weights import zoo

_TIMED = ("runtime", "winners")  # tables with times


@dataclass
class Scores:
    """Scores of methods on sets, and what could not be scored.

    Attributes:
        results: key of a method -> set -> scores.
        failures: one sentence for each method and set.
    """

    results: dict[str, dict[str, SetResult]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def score_all(
    methods: Sequence[Method],
    data: Sequence[str],
    metrics: Mapping[int, Mapping[str, Mapping[str, Any]]],
    *,
    device: torch.device,
    remember: bool = True,
) -> Scores:
    """Score every method on every set of its scale. What fails does not stop the others.

    Args:
        methods: trained networks, images, bicubic; of any scales.
        data: sets, as :func:`safmn.evaluation.image_sets.open_sets` takes them.
        metrics: scale -> name -> section.
        device: device of the networks.
        remember: use scores that were measured before.
    """
    scores = Scores()
    for method in methods:
        for images in open_sets(data, method.scale):
            try:
                found = score(method, images, metrics[method.scale], device=device, remember=remember)
            except DataError as error:
                scores.failures.append(f"{method.label} on {images.name}: {error}")
                continue
            scores.results.setdefault(method.key, {})[images.name] = found
    return scores


def usual_metrics(methods: Sequence[Method], chosen: Sequence[str] = metric_choice.DEFAULT) -> dict[int, Any]:
    """Return the sections of metrics for each scale of the methods, with a crop border equal to the scale."""
    return {scale: metric_choice.sections(chosen, scale) for scale in sorted({method.scale for method in methods})}


def shipped_and_bicubic(scale: int | None) -> list[Method]:
    """Return the package's weights for the benchmarks' degradation (bicubic), and bicubic itself, at each scale."""
    cards = {name: entry.card for name, entry in zoo.entries().items() if not name.endswith("-real")}
    found = []
    for each in sorted({int(card["scale"]) for card in cards.values()}):
        if scale in (None, each):
            names = [name for name, card in cards.items() if int(card["scale"]) == each]
            found += open_methods(["bicubic", *names], scale=each)
    return found


def quality_tables(
    methods: Sequence[Method], data: Sequence[str], *, device: torch.device, remember: bool = True
) -> tuple[list[Table], list[str]]:
    """Return a table of scores beside the published ones for each scale, and what could not be scored."""
    metrics = usual_metrics(methods)
    scores = score_all(methods, data, metrics, device=device, remember=remember)
    found = []
    for scale, sections in metrics.items():
        those = [method for method in methods if method.scale == scale and method.key in scores.results]
        if those:
            found.append(method_table(f"Quality at x{scale}", those, scores.results, sections, with_published=True))
    return found, scores.failures


def paper_tables(
    name: str,
    methods: Sequence[Method],
    *,
    scale: int | None,
    data: Sequence[str],
    protocol: Protocol,
    remember: bool = True,
) -> tuple[list[Table], list[str]]:
    """Return a published table, rebuilt, for each of its scales, and what could not be measured."""
    found, failures, remarks = all_entries(
        name, methods, scale=scale, data=data, protocol=protocol, remember=remember, timed=name in _TIMED
    )
    tables = [paper_table(f"Table {name}, x{at}", rows_, remarks) for at, rows_ in found.items()]
    return tables, failures


def all_entries(
    name: str,
    methods: Sequence[Method],
    *,
    scale: int | None,
    data: Sequence[str],
    protocol: Protocol,
    remember: bool,
    timed: bool,
) -> tuple[dict[int, list[Entry]], list[str], list[str]]:
    """Measure what a published table holds: scale -> rows; what could not be measured; how times were measured.

    Raises:
        OptionError: the table has no rows at this scale.
    """
    scales = sorted({row.scale for row in rows(name) if scale in (None, row.scale)})
    if not scales:
        raise OptionError(f"the table {name} has no rows for scale {scale}")
    mine = [method for method in methods if method.scale in scales]
    trained = [method for method in mine if method.trained]
    scores = score_all(trained, data, usual_metrics(trained), device=protocol.device, remember=remember)
    speeds: list[Speed] = []
    remarks = [] if data else [f"no quality is measured: there is no {BENCHMARK}; --data names sets."]
    if timed:
        given = [method for method in mine if method.network is not None]
        taken = {(method.published, method.scale) for method in given}
        of_table = [method for each in scales for method in networks_of(name, each)]
        networks = [*(method for method in of_table if (method.published, method.scale) not in taken), *given]
        speeds, left_out = measure([with_values(method) for method in networks], protocol)
        remarks += [*notes(speeds, protocol), *(f"not timed: {reason}" for reason in left_out)]
    found = {each: entries(name, each, mine, scores.results, speeds) for each in scales}
    return found, scores.failures, remarks


def default_data() -> list[str]:
    """Return the benchmark folder if it is there; otherwise nothing is scored."""
    return [str(BENCHMARK)] if BENCHMARK.is_dir() else []
