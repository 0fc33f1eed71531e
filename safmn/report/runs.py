"""Read what a training run left in its folder, also while it is still running.

Read are ``record.jsonl`` (ours) or else the logs (ours and BasicSR's) or else TensorBoard's files, and the option file
that our log holds and that BasicSR copies into the folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from safmn.errors import OptionError, UserError
from safmn.evaluation.metric_choice import is_lower_better
from safmn.options.problems import Problems
from safmn.options.reader import read_document
from safmn.report.events import Events, read_events
from safmn.report.logs import LogContent, read_logs

Points: TypeAlias = list[tuple[int, float]]
"""(iteration, value), in the order of iterations."""

_NO_LOSSES = ("iter", "epoch", "lr")


@dataclass
class Run:
    """A training run.

    Attributes:
        name: a name that is unique in the report.
        root: the run's folder.
        losses: loss -> points.
        learning_rate: of the generator.
        scores: set -> metric -> points.
        seconds: mean seconds per iteration since the log line before, with validation and saving.
        waiting: part of that time, 0 to 1, in which the step waited for data.
        skipped: iteration without an update, because of NaN or Inf -> its samples.
        options: the run's options, with defaults if the log is ours; empty if unknown.
        environment: versions, machine, command.
        changed: when the newest of the read files was written, in seconds since 1970.
        notes: what could not be read, in sentences.
        events: the content of TensorBoard's files.
    """

    name: str
    root: Path
    losses: dict[str, Points] = field(default_factory=dict)
    learning_rate: Points = field(default_factory=list)
    scores: dict[str, dict[str, Points]] = field(default_factory=dict)
    seconds: Points = field(default_factory=list)
    waiting: Points = field(default_factory=list)
    skipped: dict[int, list[str]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    changed: float = 0.0
    notes: list[str] = field(default_factory=list)
    events: Events = field(default_factory=Events)

    @property
    def iteration(self) -> int:
        """The newest iteration in the record; 0 if there is none."""
        every = [*self.losses.values(), self.learning_rate, *(p for s in self.scores.values() for p in s.values())]
        return max((points[-1][0] for points in every if points), default=0)

    @property
    def total(self) -> int | None:
        """The last iteration that the option file asks for, if it is known."""
        train = self.options.get("train")
        total = train.get("total_iter") if isinstance(train, Mapping) else None
        return int(total) if isinstance(total, (int, float)) else None

    def better(self, metric: str) -> str:
        """Return ``higher`` or ``lower``: which values of a metric are better."""
        return better(self.options, metric)


def better(options: Mapping[str, Any], metric: str) -> str:
    """Return ``higher`` or ``lower``: which values of a metric are better, by ``val.metrics`` of an option file."""
    val = options.get("val")
    sections = (val.get("metrics") if isinstance(val, Mapping) else None) or {}
    section = sections.get(metric)
    return "lower" if isinstance(section, Mapping) and is_lower_better(section) else "higher"


def is_run(folder: Path) -> bool:
    """Return whether a folder holds the files of a training run."""
    return (folder / "record.jsonl").is_file() or bool(_logs(folder)) or any(folder.glob("tb_logger/events.out.*"))


def read_run(folder: Path) -> Run:
    """Read a training run.

    Raises:
        UserError: the folder holds no loss and no validation result yet.
    """
    run = Run(folder.resolve().name, folder)
    record, logs = folder / "record.jsonl", _logs(folder)
    content = read_logs(logs)
    run.events = _events(folder)
    run.options = content.options or _copied_options(folder, run.notes)
    run.environment = content.environment
    if content.stopped:
        run.notes.append(f"It ended with an error: {content.stopped}")
    run.seconds, run.waiting = _points(content.seconds), _points(content.waiting)
    if record.is_file():
        _read_record(record, run)
    else:
        _take_log(content, run)
        if not run.losses:
            _take_events(run)
    if not run.iteration:
        raise UserError(f"{folder} has no loss and no validation yet: the first log line is still to come")
    files = [path for path in (record, *logs, *(folder / "tb_logger").glob("events.*")) if path.is_file()]
    run.changed = max(path.stat().st_mtime for path in files)
    return run


def age(seconds_since_1970: float) -> str:
    """Return how long ago a time was, in words.

    >>> age(time.time() - 3 * 3600)
    '3 hours ago'
    """
    minutes = max(0.0, time.time() - seconds_since_1970) / 60
    for unit, length in (("day", 24 * 60), ("hour", 60), ("minute", 1)):
        if minutes >= length:
            count = int(minutes / length)
            return f"{count} {unit}{'s' * (count != 1)} ago"
    return "less than a minute ago"


def make_names_unique(runs: Iterable[Any]) -> None:
    """Give runs or tests of the same name others: their folders, with as many parents as it takes to differ."""
    runs = list(runs)
    for depth in range(1, 8):
        names = [run.name for run in runs]
        for run in runs:
            if names.count(run.name) > 1:
                run.name = os.sep.join(run.root.resolve().parts[-depth:])


def _logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("train_*.log"), key=lambda path: (path.stat().st_mtime, path.name))


def _events(folder: Path) -> Events:
    """Read TensorBoard's files: ours lie in the run's folder, BasicSR's in ``tb_logger/<name>`` beside experiments."""
    ours, basicsr = folder / "tb_logger", folder.resolve().parent.parent / "tb_logger" / folder.resolve().name
    return read_events(ours if ours.is_dir() else basicsr)


def _copied_options(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return the option file that BasicSR copied into the folder; empty if there is none or it cannot be read."""
    for path in sorted(folder.glob("*.y*ml")):
        try:
            return read_document(path, Problems(path)).data
        except OptionError as error:
            notes.append(f"The options are unknown: {error}")
    return {}


def _read_record(record: Path, run: Run) -> None:
    """Read ``record.jsonl``. A line that repeats an iteration replaces the earlier one."""
    losses: dict[str, dict[int, float]] = {}
    rates: dict[int, float] = {}
    scores: dict[str, dict[str, dict[int, float]]] = {}
    lines = record.read_bytes().splitlines(keepends=True)
    damaged = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            iteration = int(entry["iter"])
            if "set" in entry:
                for metric in (key for key in entry if key not in ("iter", "set")):  # in the option file's order
                    scores.setdefault(entry["set"], {}).setdefault(metric, {})[iteration] = float(entry[metric])
            elif "skipped" in entry:
                run.skipped[iteration] = [str(sample) for sample in entry["skipped"]]
            else:
                rates[iteration] = float(entry["lr"])
                for name in (key for key in entry if key not in _NO_LOSSES):
                    losses.setdefault(name, {})[iteration] = float(entry[name])
        except (ValueError, TypeError, KeyError, AttributeError):
            if number < len(lines) or line.endswith(b"\n"):  # else the run is writing it
                damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        run.notes.append(f"{record}: these lines are damaged and left out: {numbers}.")
    run.losses = {name: _points(values) for name, values in losses.items()}
    run.learning_rate = _points(rates)
    run.scores = {name: {m: _points(v) for m, v in sets.items()} for name, sets in scores.items()}


def _take_log(content: LogContent, run: Run) -> None:
    names = dict.fromkeys(name for values in content.losses.values() for name in values)
    run.losses = {
        name: _points({i: values[name] for i, values in content.losses.items() if name in values}) for name in names
    }
    run.learning_rate = _points(content.learning_rate)
    for set_name, means in content.scores.items():
        metrics = dict.fromkeys(metric for values in means.values() for metric in values)
        run.scores[set_name] = {m: _points({i: v[m] for i, v in means.items() if m in v}) for m in metrics}


def _take_events(run: Run) -> None:
    """Take losses and scores from TensorBoard's files, with our tags or BasicSR's."""
    for tag, values in run.events.scalars.items():
        kind, _, rest = tag.partition("/")
        if kind == "losses" and rest:
            run.losses[rest] = _points(values)
        elif kind == "metrics" and rest:
            set_name, _, metric = rest.rpartition("/")
            run.scores.setdefault(set_name or "validation", {})[metric] = _points(values)
        elif tag == "learning_rate":
            run.learning_rate = _points(values)


def _points(values: Mapping[int, float]) -> Points:
    return sorted(values.items())
