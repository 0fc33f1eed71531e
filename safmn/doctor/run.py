"""Try an option file before the work starts: a few steps, validation, saving and resuming, in a temporary folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from safmn.data.stages import LISTS, Stage, heaviest, largest_patch, stages_of
from safmn.doctor.findings import Finding, State
from safmn.errors import UserError, first_line
from safmn.evaluation.benchmark import plan_from_options
from safmn.evaluation.scoring import evaluate
from safmn.options import Options, load_options
from safmn.runtime import distributed
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import choose_device
from safmn.system.memory import PeakMemory, free_bytes, is_out_of_memory
from safmn.training.build import build_loader, build_trainer
from safmn.training.experiment import Experiment, start_logging
from safmn.training.trainer import Trainer

_STEPS = 4  # one to warm up, one to measure the memory, two to measure the time
_UNTIMED = 2
_IMAGES = 2  # validation images of each set
_LOADER_BATCHES, _LOADER_SECONDS = 12, 15.0
_GB = 1e9
_RISING = 3.0  # by what factor the loss must rise in the trial to be reported
_MUCH_VALIDATION = 0.6  # share of the time of a run
_LIKELY_BYTES = 12_000  # that a step takes for each LQ pixel, roughly; above, a small batch is tried first
_PROBED = 2  # images in it
_TIGHT = 0.9  # share of the free memory or disk that a run may use


class Notes(logging.Handler):
    """Keeps what SAFMN logs as warnings while the doctor works."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.messages.append(record.getMessage())


class FirstImages(torch.utils.data.Dataset[Any]):
    """The first images of a validation set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return min(len(self.dataset), _IMAGES)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self):
            raise IndexError(index)
        return self.dataset[index]


class Measured:
    """What the trial run measured.

    Attributes:
        steps: seconds of each training step.
        memory: bytes of the tensors that a step makes.
        validation: seconds of one validation of all sets, estimated from the first images.
        loaded: batches that the loader delivers per second.
        losses: sum of the losses of each step.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.steps: list[float] = []
        self.memory = 0
        self.validation = 0.0
        self.loaded = 0.0

    @property
    def step(self) -> float:
        """Seconds of a step once everything is warm."""
        return statistics.median(self.steps[_UNTIMED:] or self.steps)


def try_run(path: str, overrides: Sequence[str], notes: Notes) -> list[Finding]:
    """Train a few steps, validate the first images, save, resume and train one step more; say what a run takes.

    Args:
        path: the option file.
        overrides: entries of ``--force_yml``.
        notes: receives the warnings.
    """
    folder = tempfile.mkdtemp(prefix="safmn_doctor_")
    temporary = [
        f"path:experiments_root={folder}",
        "path:resume_state=~",
        "logger:use_tb_logger=false",
        f"logger:print_freq={_STEPS + 1}",
    ]
    try:
        with _no_traceback() as failed:
            given = load_options(path, mode="train", overrides=overrides)
            temporary += _heaviest_stage(given)
            options = load_options(path, mode="train", overrides=[*overrides, *temporary])
            if (too_large := _too_large(path, [*overrides, *temporary], options, notes)) is not None:
                return [too_large]
            measured = Measured()
            _train(options, measured, notes)
            size = _resume(options, notes)
            return [
                Finding(State.FINE, "trial run", f"{_STEPS} steps, validation, saving and resuming work"),
                *_costs(given, measured, size),
            ]
        return failed
    finally:
        distributed.leave()
        shutil.rmtree(folder, ignore_errors=True)


def _heaviest_stage(options: Options) -> list[str]:
    """Return overrides for a trial with the sizes of the stage that needs the most memory; none without stages."""
    section = options.datasets["train"]
    if not section.get("iters"):
        return []
    stage = heaviest(section)
    changed = [f"datasets:train:{key}=~" for key in LISTS]
    changed.append(f"datasets:train:batch_size_per_gpu={stage.batch_size}")
    return changed if stage.gt_size is None else [*changed, f"datasets:train:gt_size={stage.gt_size}"]


def try_test(options: Options, sets: Mapping[str, Any]) -> list[Finding]:
    """Load the network and the weights of an option file for testing, and score the first images of each set.

    Args:
        options: the option file.
        sets: section name -> data set, of the sets that could be built.
    """
    with _no_traceback("trial test") as failed:
        start_logging(None, is_main=True, console=logging.NullHandler())
        device = choose_device(options.num_gpu)
        plan = plan_from_options(options, Path(), device)
        for name, dataset in sets.items():
            evaluate(plan.network, FirstImages(dataset), name=name, metrics=plan.metrics, device=device, progress=False)
        text = f"the weights fit the network, and the first {_IMAGES} images of each set are measured"
        return [Finding(State.FINE, "trial test", text)]
    return failed


@contextlib.contextmanager
def _no_traceback(subject: str = "trial run") -> Iterator[list[Finding]]:
    """Context in which an exception becomes a finding of the list, with the place where it was raised."""
    found: list[Finding] = []
    try:
        yield found
    except (UserError, OSError) as error:
        found.append(Finding(State.FAILS, subject, str(error)))
    except Exception as error:
        if is_out_of_memory(error):
            text = "the memory is too small for this batch: lower batch_size_per_gpu, or set train.accumulate"
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{frame.filename}, line {frame.lineno}: {type(error).__name__}: {first_line(error)}"
        found.append(Finding(State.FAILS, subject, text))


def _build(options: Options, notes: Notes, *, last: int, resume: bool = False) -> Trainer:
    trainer = build_trainer(options, Ranks(), auto_resume=resume, console=notes)
    trainer.last_iteration = trainer.saver.last_iteration = last
    sets = trainer.validator.datasets
    trainer.validator.datasets = {name: FirstImages(dataset) for name, dataset in sets.items()}
    return trainer


def _train(options: Options, measured: Measured, notes: Notes) -> None:
    trainer = _build(options, notes, last=_STEPS)
    sets = trainer.validator.datasets
    share = sum(len(one.dataset) for one in sets.values()) / max(sum(len(one) for one in sets.values()), 1)
    trainer.model.training_step = _timed(trainer, measured)  # type: ignore[method-assign]
    validate = trainer.validator.run

    def timed_validation(*arguments: Any) -> bool:
        began = time.perf_counter()
        best = validate(*arguments)
        measured.validation = (time.perf_counter() - began) * share
        return best

    trainer.validator.run = timed_validation  # type: ignore[method-assign,assignment]
    trainer.run()
    measured.loaded = _loading_rate(options, trainer)


def _too_large(path: str, overrides: Sequence[str], options: Options, notes: Notes) -> Finding | None:
    """Return a finding if a step does not fit into the memory of a CPU, where a trial would end the process.

    A GPU reports it. So only a batch on a CPU that may be too large is estimated, from a step with a small one.
    """
    section = options.datasets["train"]
    on_gpu = options.num_gpu != 0 and torch.cuda.is_available()
    batch, patch, free = section["batch_size_per_gpu"], section.get("gt_size"), free_bytes(torch.device("cpu")) * _TIGHT
    if on_gpu or not isinstance(patch, int) or batch <= _PROBED:
        return None
    if batch * (patch / options.scale) ** 2 * _LIKELY_BYTES < free / 4:
        return None
    small = [*overrides, f"datasets:train:batch_size_per_gpu={_PROBED}"]
    measured = Measured()
    trainer = _build(load_options(path, mode="train", overrides=small), notes, last=2)
    trainer.validator.datasets = {}
    trainer.model.training_step = _timed(trainer, measured)  # type: ignore[method-assign]
    trainer.run()
    needed = measured.memory / _PROBED * batch
    if needed < free:
        return None
    text = f"a batch of {batch} needs about {needed / _GB:.0f} GB, {free / _GB:.0f} GB are free"
    fits = max(int(free / needed * batch), 1)
    advice = f"batch_size_per_gpu: {fits} with train.accumulate: {-(-batch // fits)} makes about the same steps"
    return Finding(State.FAILS, "memory", f"{text}: {advice}")


def _timed(trainer: Trainer, measured: Measured) -> Callable[..., Any]:
    """Return the training step with a clock; the second step is also watched for the memory that it takes."""
    step, device = trainer.model.training_step, trainer.model.execution.device

    def timed_step(*arguments: Any) -> Any:
        began = time.perf_counter()
        with _memory_of_step(device, measured) if len(measured.steps) == 1 else contextlib.nullcontext():
            result = step(*arguments)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        measured.steps.append(time.perf_counter() - began)
        measured.losses.append(sum(float(loss) for loss in result.losses.values()))
        return result

    return timed_step


@contextlib.contextmanager
def _memory_of_step(device: torch.device, measured: Measured) -> Iterator[None]:
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield
        measured.memory = torch.cuda.max_memory_allocated(device) - before
        return
    with PeakMemory() as peak:
        yield
    measured.memory = peak.peak


def _loading_rate(options: Options, trainer: Trainer) -> float:
    """Return for how many iterations per second the loader delivers batches when nothing else happens."""
    loader = build_loader(options, trainer.model.execution, Ranks())
    try:
        batches = loader.batches(0)
        next(batches)
        began, count = time.perf_counter(), 0
        while count < _LOADER_BATCHES and time.perf_counter() - began < _LOADER_SECONDS:
            next(batches)
            count += 1
        return count / max(time.perf_counter() - began, 1e-9)
    finally:
        loader.close()


def _resume(options: Options, notes: Notes) -> int:
    """Resume the trial run for one step; return the bytes that the whole run will leave on the disk."""
    trainer = _build(options, notes, last=_STEPS + 1, resume=True)
    if trainer.progress.iteration != _STEPS:
        raise UserError(f"the saved run did not resume at iteration {_STEPS}, but at {trainer.progress.iteration}")
    trainer.run()
    root = Experiment.of(options).root
    checkpoint = sum(
        file.stat().st_size for file in (root / "training_states" / str(_STEPS)).rglob("*") if file.is_file()
    )
    weights = sum(file.stat().st_size for file in (root / "models").glob(f"*_{_STEPS}.pth"))
    return _disk(options, checkpoint, weights)


def _disk(options: Options, checkpoint: int, weights: int) -> int:
    """Return the bytes that the finished run leaves: kept checkpoints, and the weights of every scheduled save."""
    assert options.train is not None
    saves = options.train.total_iter // options.logger.save_checkpoint_freq + 2
    return checkpoint * (min(options.logger.keep_last, saves) + 2) + weights * saves


def _costs(options: Options, measured: Measured, disk: int) -> list[Finding]:
    """Return what the run takes: time, memory and disk, and what it waits for."""
    assert options.train is not None
    train = options.train
    iterations = _seconds_of_steps(options, measured)
    each = "" if len(stages_of(options.datasets["train"])) == 1 else " in the largest stage"
    validations = 0 if options.val is None else -(-train.total_iter // options.val.val_freq)
    text = (
        f"about {_duration(iterations + validations * measured.validation)}: {train.total_iter} iterations of "
        f"{_seconds(measured.step)}{each}, {validations} validations of {_seconds(measured.validation)}"
    )
    found = [
        Finding(State.FINE, "time", text),
        _memory(options, measured),
        _room(options, disk),
        _waiting(measured),
    ]
    share = validations * measured.validation / (iterations + validations * measured.validation)
    if share > _MUCH_VALIDATION:
        advice = "raise val.val_freq, or validate on fewer images"
        found.append(Finding(State.BETTER, "validation", f"takes {share:.0%} of the time: {advice}"))
    first, last = measured.losses[0], measured.losses[-1]
    if last > _RISING * first > 0:
        text = f"rises from {first:.3g} to {last:.3g} in {len(measured.losses)} steps: lower the learning rate"
        found.append(Finding(State.BETTER, "loss", text))
    return found


def _seconds_of_steps(options: Options, measured: Measured) -> float:
    """Return the seconds of all steps, where the step of a smaller stage takes time in proportion to its pixels."""
    assert options.train is not None
    section, total = options.datasets["train"], options.train.total_iter
    limit = largest_patch(section) or 1

    def pixels(stage: Stage) -> int:
        return stage.batch_size * (stage.gt_size or limit) ** 2

    largest = pixels(heaviest(section))
    counts = [max(min(stage.last or total, total) - stage.first + 1, 0) for stage in stages_of(section)]
    shares = zip(stages_of(section), counts, strict=True)
    return measured.step * sum(count * pixels(stage) / largest for stage, count in shares)


def _memory(options: Options, measured: Measured) -> Finding:
    cuda = torch.cuda.is_available() and options.num_gpu != 0
    free = free_bytes(torch.device("cuda" if cuda else "cpu")) * _TIGHT
    stages = stages_of(options.datasets["train"])
    largest = heaviest(options.datasets["train"])
    batch, of = largest.batch_size, f" ({largest})" if len(stages) > 1 else ""
    each = measured.memory / batch
    text = f"a step takes {measured.memory / _GB:.2f} GB for a batch of {batch}{of}"
    if each:
        text += f"; {free / _GB:.1f} GB are free, enough for a batch of about {max(int(free / each), 1)}"
    return Finding(State.FINE, "memory", text)


def _room(options: Options, disk: int) -> Finding:
    root = Experiment.of(options).root.absolute()
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    text = f"the run leaves about {disk / _GB:.2f} GB in {root.parent}; {free / _GB:.1f} GB are free"
    if not place.is_dir():
        return Finding(State.FAILS, "disk", f"{place} is a file, not a folder: move it, or set path.experiments_root")
    if not os.access(place, os.W_OK):
        return Finding(State.FAILS, "disk", f"{place} cannot be written: set path.experiments_root")
    if disk > free:
        return Finding(State.FAILS, "disk", f"{text}: raise save_checkpoint_freq, or set path.experiments_root")
    if disk > _TIGHT * free:
        return Finding(State.BETTER, "disk", f"{text}, which is tight")
    return Finding(State.FINE, "disk", text)


def _waiting(measured: Measured) -> Finding:
    needed = 1 / measured.step
    text = f"the loader can feed {measured.loaded:.1f} iterations per second, the network does {needed:.1f}"
    if measured.loaded < needed:
        advice = "the network will wait: more num_worker_per_gpu, or a store (safmn prepare store)"
        return Finding(State.BETTER, "loading", f"{text}: {advice}")
    return Finding(State.FINE, "loading", text)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
