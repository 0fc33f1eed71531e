"""Read the log files of training runs: ours, and those of BasicSR."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safmn.errors import OptionError
from safmn.options.reader import parse_value

_START = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:,\d+)? [A-Z]+: ?(.*)", re.DOTALL)
_OURS = re.compile(r"epoch \d+  iter (\d+)  lr (\S+)  (\S+) it/s  data (\d+)%  eta \S+  (.*)")
_OUR_SCORES = re.compile(r"validation  iter (\d+)  (.+?)  (\S+ [-\d.naif]+(?: \(|  |$).*)")
_SCORE = re.compile(r"(\S+) (-?[\d.]+|nan|-?inf)(?: \(best [^)]*\))?(?:  |$)")
_BASICSR = re.compile(
    r"\[.*?\]\[epoch:\s*\d+, iter:\s*([\d,]+), lr:\(([^,)]+),?[^)]*\)\] "
    r"(?:\[eta: .*?, time \(data\): ([\d.]+) \(([\d.]+)\)\] )?(.*)"
)
_BASICSR_SCORES = re.compile(r"Validation (.+?)\s*\n(.*)", re.DOTALL)
_BASICSR_SCORE = re.compile(r"# (\S+): (-?[\d.]+|nan|-?inf)")
_PAIR = re.compile(r"(\S+?):? (-?[\d.]+(?:e[-+]?\d+)?|nan|-?inf)(?:\s|$)")
_FACT = re.compile(
    r"(safmn|git commit|python|torch|torchvision|basicsr|numpy|opencv|machine|command): (.*)", re.IGNORECASE
)


@dataclass
class LogContent:
    """What log files tell about a run. Where a resumed run repeats iterations, the later lines count.

    Attributes:
        losses: iteration -> loss -> value.
        learning_rate: iteration -> rate.
        seconds: iteration -> mean seconds per iteration since the line before, with validation and saving.
        waiting: iteration -> part of that time, 0 to 1, in which the step waited for data.
        scores: set -> iteration -> metric -> mean.
        options: the options of the newest start; empty if the log has none.
        environment: versions, machine and command of the newest start.
        starts: how often the run was started.
        stopped: the error with which the newest start ended; empty if the log names none.
    """

    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    learning_rate: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    waiting: dict[int, float] = field(default_factory=dict)
    scores: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    stopped: str = ""


def read_logs(paths: list[Path]) -> LogContent:
    """Read the log files of one run, oldest first. An incomplete last line is left out: it is being written."""
    content = LogContent()
    for path in paths:
        text = path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        for entry in _entries(text[: text.rfind("\n") + 1]):
            _note(entry, content)
    return content


def _entries(text: str) -> list[str]:
    """Return the log's messages; lines that do not start with a time belong to the message before."""
    found: list[str] = []
    for line in text.splitlines():
        if start := _START.match(line):
            found.append(start[1])
        elif found:
            found[-1] += f"\n{line}"
    return found


def _note(entry: str, content: LogContent) -> None:
    if found := _OURS.fullmatch(entry):
        iteration, rate, speed, waiting, losses = found.groups()
        _note_step(content, int(iteration), rate, losses)
        if float(speed) > 0:
            content.seconds[int(iteration)] = 1 / float(speed)
        content.waiting[int(iteration)] = float(waiting) / 100
    elif found := _BASICSR.fullmatch(entry):
        number, rate, seconds, waited, losses = found.groups()
        iteration = int(number.replace(",", ""))
        _note_step(content, iteration, rate, losses)
        if seconds and float(seconds) > 0:
            content.seconds[iteration] = float(seconds)
            content.waiting[iteration] = min(float(waited) / float(seconds), 1.0)
    elif found := _OUR_SCORES.fullmatch(entry):
        scores = {metric: float(value) for metric, value in _SCORE.findall(found[3])}
        content.scores.setdefault(found[2], {})[int(found[1])] = scores
    elif found := _BASICSR_SCORES.match(entry):  # names no iteration: it is that of the line before
        scores = {metric: float(value) for metric, value in _BASICSR_SCORE.findall(found[2])}
        content.scores.setdefault(found[1], {})[max(content.losses, default=0)] = scores
    elif entry.startswith("options of ") and ":\n" in entry:
        content.options = _options(entry.partition(":\n")[2])
    else:
        _note_environment(entry, content)


def _note_step(content: LogContent, iteration: int, rate: str, losses: str) -> None:
    content.learning_rate[iteration] = float(rate)
    content.losses[iteration] = {name: float(value) for name, value in _PAIR.findall(losses)}


def _note_environment(entry: str, content: LogContent) -> None:
    """Note versions, which our log has in messages of their own and BasicSR's log in lines of one message."""
    for line in entry.splitlines() if "Version Information" in entry else [entry]:
        if found := _FACT.fullmatch(line.strip()):
            if found[1] == "safmn":
                content.environment, content.stopped = {}, ""
                content.starts += 1
            content.environment[found[1]] = found[2].strip()
    if entry.startswith("stopped: "):
        content.stopped = entry.removeprefix("stopped: ").partition("\n")[0]
    if entry.startswith("computing on "):
        content.environment["device"] = entry.removeprefix("computing on ")


def _options(text: str) -> dict[str, Any]:
    try:
        data = parse_value(textwrap.dedent(text))
    except OptionError:
        return {}
    return data if isinstance(data, dict) else {}
