"""Train every combination of some values of an option file, each run in a process of its own, and compare the runs."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple

from safmn.errors import EXIT_FAILED, EXIT_INTERRUPTED, OptionError
from safmn.imaging.file_names import folder_mistake
from safmn.options import Options, load_options
from safmn.options.reader import parse_value
from safmn.system.console import say, table
from safmn.system.files import write_atomically
from safmn.system.signals import sigterm_as_ctrl_c
from safmn.training.experiment import Experiment

_TRAIN = (sys.executable, "-m", "safmn.system.guarded", "train")
_POLL = 0.5  # seconds between looks at a run that another process trains
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (0, 0, 0))
_WIDTH, _HEIGHT, _MARGIN, _LINE = 900, 480, 60, 18  # of the plot, in pixels


class SweptRun(NamedTuple):
    """One run of a sweep: its checked options, its values by key, and the arguments of ``--force_yml``."""

    options: Options
    values: dict[str, str]
    overrides: list[str]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Experiment.of(self.options).root


def sweep(option_file: str, entries: Sequence[str], *, jobs: int = 1, tolerant: bool = False) -> int:
    """Train every combination, write the table and the plot, and return the exit status.

    Args:
        option_file: the option file.
        entries: ``train.optim_g.lr=1e-3,5e-4``, ...
        jobs: number of runs at a time.
        tolerant: unknown keys are warnings.

    Raises:
        OptionError: an entry is wrong, or one of the combinations is not a valid option file; nothing was trained.
    """
    axes = [_axis(entry) for entry in entries]
    more = ["tolerant=true"] if tolerant else []
    chosen = [dict(zip(dict(axes), values, strict=True)) for values in _combinations(axes)]
    with _warned_once():
        base = load_options(option_file, mode="train", overrides=more)
        runs = [_run(option_file, base.name, values, more) for values in chosen]
    say(f"{len(runs)} runs: {', '.join(run.options.name for run in runs)}")
    folder = Path(base.path.experiments_root or "experiments") / f"{base.name}_sweep"
    folder.mkdir(parents=True, exist_ok=True)
    pool, trainings = ThreadPoolExecutor(jobs), _Trainings()
    try:
        with sigterm_as_ctrl_c():
            states = list(pool.map(lambda run: _train(option_file, run, folder, trainings), runs))
    except KeyboardInterrupt:
        trainings.stop()
        say("stopping: the runs under way are saved; the same command goes on with them")
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    failed = [run.options.name for run, state in zip(runs, states, strict=True) if state]
    text = _table(runs, states)
    write_atomically(folder / "sweep.md", text + "\n")
    _plot(runs, folder / "sweep.png")
    say(f"\n{text}\n\ntable and plot: {folder / 'sweep.md'}, {folder / 'sweep.png'}")
    for name in failed:
        output = folder / f"{name}.txt"
        say(f"failed: {name}{_last_error(output)}; its output is in {output}. The same command tries it again")
    return EXIT_FAILED if failed else 0


@contextlib.contextmanager
def _warned_once() -> Iterator[None]:
    """Keep a warning about the option file from being repeated for every combination."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return text not in seen and not seen.add(text)  # type: ignore[func-returns-value]

    log = logging.getLogger("safmn.options.problems")
    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


class _Trainings:
    """The processes of the runs under way. Threads start and end them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: Sequence[str], output: IO[bytes]) -> int:
        """Run a command to its end, and return its exit status; after :meth:`stop`, do not start it."""
        with self._lock:
            if self._stopped:
                return EXIT_INTERRUPTED
            # The pipe closes when this process ends, even if it is killed; the run then saves and ends.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
            self._processes.add(process)
        status = process.wait()
        assert process.stdin is not None
        process.stdin.close()
        with self._lock:
            self._processes.discard(process)
        return status

    @property
    def stopped(self) -> bool:
        """Whether no more processes are started."""
        return self._stopped

    def stop(self) -> None:
        """Tell the processes to save and end. On Windows they get the user's Ctrl-C, and SIGTERM would kill them."""
        with self._lock:
            self._stopped = True
            for process in self._processes if sys.platform != "win32" else ():
                process.terminate()


def _last_error(output: Path) -> str:
    """Return the last error in a run's output, to be appended to a sentence; empty if there is none."""
    text = output.read_text(encoding="utf-8", errors="replace")
    _, found, rest = text.rpartition("safmn: error: ")
    return f": {rest.splitlines()[0]}" if found and rest.strip() else ""


def _axis(entry: str) -> tuple[str, list[str]]:
    """Split ``train.optim_g.lr=1e-3,5e-4`` into the key and its values; commas in brackets do not separate."""
    key, equals, text = entry.partition("=")
    values, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            values.append(current)
            current = ""
        else:
            current += character
    values.append(current)
    if not equals or not key or not all(value.strip() for value in values):
        raise OptionError(f"{entry}: expected a key and values, for example train.optim_g.lr=1e-3,5e-4")
    return key.replace(":", "."), [value.strip() for value in values]


def _combinations(axes: Sequence[tuple[str, list[str]]]) -> list[tuple[str, ...]]:
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        raise OptionError(f"{', '.join(keys)}: a key is given twice; list all its values behind one")
    return list(itertools.product(*(values for _, values in axes)))


def _run(option_file: str, name: str, values: dict[str, str], more: Sequence[str] = ()) -> SweptRun:
    shown = {key: json.dumps(parse_value(value)).replace('"', "").replace(" ", "") for key, value in values.items()}
    title = "_".join([name, *(f"{key.split('.')[-1]}={value}" for key, value in shown.items())])
    if mistake := folder_mistake(title):
        raise OptionError(f"the run would be called {title!r}: {mistake}")
    overrides = [f"{key.replace('.', ':')}={value}" for key, value in values.items()] + [f"name={title}", *more]
    return SweptRun(load_options(option_file, mode="train", overrides=overrides), values, overrides)


def _train(option_file: str, run: SweptRun, folder: Path, trainings: _Trainings) -> int:
    """Train one run to its end in a process of its own; its output goes to a file. Return its exit status."""
    _wait_until_free(run, trainings)
    with (folder / f"{run.options.name}.txt").open("ab") as output:
        status = trainings.run([*_TRAIN, "-opt", option_file, "--auto_resume", "--force_yml", *run.overrides], output)
    say(f"{run.options.name}: {'done' if not status else f'exit status {status}'}")
    return status


def _wait_until_free(run: SweptRun, trainings: _Trainings) -> None:
    """Wait for a process that trains the run already, such as one of a sweep that was killed and that still saves."""
    experiment, said = Experiment.of(run.options), False
    while not trainings.stopped:
        owner = experiment.in_use_by()
        if owner is None:
            return
        if not said:
            say(f"{run.options.name}: waiting for {owner}, which trains it")
        said = True
        time.sleep(_POLL)


def _scores(run: SweptRun) -> dict[str, list[tuple[int, float]]]:
    """Return the points (iteration, value) of each metric of each set, in the order of the record."""
    found: dict[str, list[tuple[int, float]]] = {}
    record = run.folder / "record.jsonl"
    for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else ():
        entry: dict[str, Any] = json.loads(line)
        for key, value in entry.items() if "set" in entry else ():
            if key not in ("iter", "set") and isinstance(value, (int, float)):
                found.setdefault(f"{key}, {entry['set']}", []).append((entry["iter"], float(value)))
    return found


def _table(runs: Sequence[SweptRun], states: Sequence[int]) -> str:
    """Return a Markdown table: a row for each run, with the last value of every metric."""
    scores = [_scores(run) for run in runs]
    metrics = list(dict.fromkeys(name for each in scores for name in each))
    header = [*runs[0].values, "iterations", *metrics, *(["state"] if any(states) else [])]
    rows: list[list[object]] = []
    for run, each, state in zip(runs, scores, states, strict=True):
        last = max((points[-1][0] for points in each.values()), default=0)
        cells = [f"{each[name][-1][1]:.4f}" if name in each else "" for name in metrics]
        ended = [f"exit status {state}" if state else "done"] if any(states) else []
        rows.append([*run.values.values(), last, *cells, *ended])
    return table(header, rows)


def _plot(runs: Sequence[SweptRun], path: Path) -> None:
    """Draw the first metric of every run over its iterations."""
    from PIL import Image, ImageDraw

    scores = [_scores(run) for run in runs]
    metric = next((name for each in scores for name in each), None)
    curves = {run.options.name: each.get(metric, []) if metric else [] for run, each in zip(runs, scores, strict=True)}
    points = [point for curve in curves.values() for point in curve]
    height = _HEIGHT + _LINE * (len(runs) + 1)
    image = Image.new("RGB", (_WIDTH, height), "white")
    draw = ImageDraw.Draw(image)
    right, bottom = _WIDTH - 20, _HEIGHT - _MARGIN
    draw.line([(_MARGIN, 20), (_MARGIN, bottom), (right, bottom)], fill="black")
    draw.text((_MARGIN, _HEIGHT - 24), f"{metric or 'no validation yet'} over iterations", fill="black")
    if points:
        x0, x1 = 0, max(x for x, _ in points)
        y0, y1 = min(y for _, y in points), max(y for _, y in points)
        spread = (y1 - y0) or 1.0
        draw.text((4, 20), f"{y1:.4g}", fill="black")
        draw.text((4, bottom - 12), f"{y0:.4g}", fill="black")
        draw.text((right - 50, bottom + 6), str(x1), fill="black")
        for index, curve in enumerate(curves.values()):
            at = [
                (_MARGIN + (x - x0) / max(x1 - x0, 1) * (right - _MARGIN), bottom - (y - y0) / spread * (bottom - 20))
                for x, y in curve
            ]
            colour = _COLOURS[index % len(_COLOURS)]
            if len(at) > 1:
                draw.line(at, fill=colour, width=2)
            for x, y in at:
                draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
    for index, name in enumerate(curves):
        line = _HEIGHT + _LINE * index
        draw.rectangle([_MARGIN, line + 2, _MARGIN + 12, line + 14], fill=_COLOURS[index % len(_COLOURS)])
        draw.text((_MARGIN + 20, line), name, fill="black")
    image.save(path)
