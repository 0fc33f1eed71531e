"""The training loop. What it calls is built in :mod:`safmn.training.build`."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from safmn.data.workers import explain_death, is_death
from safmn.errors import CheckpointError, OptionError, UserError
from safmn.options import Options
from safmn.options.types import NETWORK_KEYS
from safmn.runtime import distributed
from safmn.runtime.agreement import agreed, explain_lost_ranks, raise_together
from safmn.runtime.random_state import seed_everything
from safmn.system.memory import OUT_OF_MEMORY, is_out_of_memory
from safmn.system.signals import Interrupt
from safmn.training.checkpoint import Checkpoint, Checkpointer
from safmn.training.device_batches import feed
from safmn.training.experiment import FILE_ONLY, Experiment
from safmn.training.models import Model, StepResult
from safmn.training.models.base_model import training_section
from safmn.training.progress import Progress
from safmn.training.reporter import Reporter
from safmn.training.step_flags import Verdict, Watch
from safmn.training.validation import Interrupted, Validator
from safmn.weights import save_weights

logger = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """A loss or gradient is NaN or Inf; the weights are those of the iteration before."""


@contextlib.contextmanager
def _explain_torch() -> Iterator[None]:
    """What torch says of a setting that does not fit the network, as the mistake in the option file that it is."""
    try:
        yield
    except RuntimeError as error:
        if "Expected to have finished reduction in the prior iteration" in str(error):  # of DistributedDataParallel
            raise OptionError(
                "some weights of the network take no part in its loss; set find_unused_parameters: true"
            ) from error
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise OptionError(
            f"deterministic: true: {str(error).split(',')[0]}. Give patches whose LR side is a multiple of the "
            "network's window (8 for SAFMN: gt_size a multiple of 8 * scale), which need no adaptive pooling, or leave "
            "deterministic out."
        ) from error


@contextlib.contextmanager
def _explain_misfit(source: str, batches: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Whatever a first step raises, as the mistake in the option file that it is: parts that do not fit together."""
    try:
        yield
    except (UserError, OSError, *OUT_OF_MEMORY):
        raise
    except Exception as error:  # networks and losses may be anybody's, and raise anything
        if is_out_of_memory(error) or is_death(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        torch_folder = str(Path(torch.__file__).parent)
        frame = next((f for f in reversed(frames) if not f.filename.startswith(torch_folder)), frames[-1])
        advice = ". Try train.channels_last: false" if "view size is not compatible" in str(error) else ""
        shapes = {key: tuple(value.shape) for key, value in batches[0].items() if torch.is_tensor(value)}
        raise OptionError(
            f"{source}: the first training step failed: network, losses and data do not fit together. Batch: "
            f"{', '.join(f'{key} {shape}' for key, shape in shapes.items())}; {Path(frame.filename).name}, line "
            f"{frame.lineno}: {type(error).__name__}: {error}{advice}"
        ) from error


def _optimizer(options: Mapping[str, Any], network: str) -> tuple[Any, Any]:
    """What decides which moments the optimiser of ``net_g`` or ``net_d`` keeps."""
    section = options["train"].get(NETWORK_KEYS[network].optimiser) or {}
    return section.get("type"), section.get("amsgrad", False)


class Trainer:
    """Trains ``model`` until the last iteration or a signal.

    Everything that decides the result is a function of the iteration (learning rate, batch, random state) or is in the
    checkpoint (networks, progress); so a run that was killed and resumed ends with the same bytes.
    """

    def __init__(
        self,
        options: Options,
        model: Model,
        loader: Any,
        validator: Validator,
        experiment: Experiment,
        checkpointer: Checkpointer,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.options = options
        self.model = model
        self.loader = loader
        self.validator = validator
        self.experiment = experiment
        self.checkpointer = checkpointer
        self.fingerprints = dict(fingerprints or {})
        self.progress = Progress(fingerprints=self.fingerprints)
        self.train = training_section(options)
        self.last_iteration = self.train.total_iter
        self.watch = Watch(model.execution.device, model.ranks)
        self._waited = 0.0
        self._in_step = False
        self._losses_are_due = False  # a step is done, and its losses have yet to be averaged over the ranks

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; an optimiser of another kind than its own starts anew.

        Raises:
            CheckpointError: it holds other networks than this run trains.
        """
        before, now = checkpoint.options, self.options.raw
        changed = [name for name in self.model.networks if _optimizer(before, name) != _optimizer(now, name)]
        self.model.load_state(checkpoint.networks, new_optimizers=changed)
        self.progress = Progress.from_dict({**checkpoint.progress, "fingerprints": self.fingerprints})
        if self.model.ranks.is_main and checkpoint.path.absolute().parent == self.checkpointer.folder.absolute():
            self._prune()  # the kill may have come between saving and pruning

    def run(self) -> int:
        """Train; returns the exit status: 0, or 128 + the signal that asked to stop (after saving)."""
        log, model, progress = self._reporter(), self.model, self.progress
        if progress.iteration >= self.last_iteration:
            logger.info("nothing to train: iteration %d of %d is done", progress.iteration, self.last_iteration)
        first = progress.iteration + 1
        try:
            with Interrupt() as interrupt, self._rescued(), explain_death(), explain_lost_ranks():
                leave = self._validation_is_missing() and self._after_step(log, interrupt, [])
                for batches in () if leave else self._batches():
                    progress.iteration = iteration = progress.iteration + 1
                    seed_everything(self.options.manual_seed, iteration, model.ranks.rank)
                    model.set_learning_rate(iteration)
                    result = self._step(batches, is_first=iteration == first)
                    signal_number = interrupt.signal_number
                    verdicts = self.watch.push(iteration, result.nonfinite, stop=signal_number, batches=batches)
                    if self._log_due(iteration):
                        self._log(log, result)
                    log.step()
                    if leave := self._after_step(log, interrupt, verdicts):
                        break
                return interrupt.exit_status if leave else 0
        except Exception as error:
            logger.error("stopped: %s: %s", type(error).__name__, error, extra=FILE_ONLY)
            raise
        finally:
            log.close()
            self.loader.close()

    def _step(self, batches: Sequence[Mapping[str, Any]], *, is_first: bool) -> StepResult:
        fits = _explain_misfit(self.options.source, batches) if is_first else contextlib.nullcontext()
        self._in_step = True
        with fits, _explain_torch(), explain_lost_ranks():
            result = self.model.training_step(batches, self.progress.iteration)
        self._in_step = False
        self._losses_are_due = self._log_due(self.progress.iteration)
        return result

    def _after_step(self, log: Reporter, interrupt: Interrupt, verdicts: list[Verdict]) -> bool:
        """Validate and save where it is time; returns whether the run was asked to leave (then it has saved)."""
        iteration = self.progress.iteration
        validate = self.validator.due(iteration, self.last_iteration)
        if validate or self._scheduled(iteration) or any(verdict.stop for verdict in verdicts):
            verdicts = verdicts + self.watch.drain()
        interrupt.join(max((verdict.stop for verdict in verdicts), default=0))
        leave, improved = self._judge(verdicts), False
        if validate and not leave:
            try:
                improved = self.validator.run(self.model, self.progress, log, lambda: bool(interrupt))
            except Interrupted:
                leave = True
        if leave or improved or self._scheduled(iteration):
            self._save(best=improved)
        return leave

    def _batches(self) -> Any:
        """Micro-batches of the iterations still to do, on the device; notes the time spent waiting for data."""
        remaining = self.last_iteration - self.progress.iteration
        loaded = feed(self.loader.batches(self.progress.iteration), self.model.execution)
        batches = agreed(itertools.islice(loaded, remaining))
        self._began = time.perf_counter()
        for _ in range(remaining):
            asked = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - asked
            yield batch

    @contextlib.contextmanager
    def _rescued(self) -> Iterator[None]:
        """Save before an error leaves the block: whatever it was, the training before it is whole."""
        try:
            yield
        except (NonFiniteError, CheckpointError):  # what could be saved is saved
            raise
        except Exception:
            try:
                self._rescue()
            except CheckpointError as failed:
                logger.error("%s", failed)
            raise

    def _rescue(self) -> None:
        """Save the newest iteration that is whole; a step that failed is undone.

        Not so where a loss that was NaN or Inf should have stopped it before: the next run meets that one again.
        """
        if self._in_step:
            if not self.model.abandon_step():
                logger.error("iteration %d was done in part, and is not saved", self.progress.iteration)
                return
            self.progress.iteration -= 1
        elif self._losses_are_due:  # a rank is gone; saving now would leave a gap in the record of losses
            logger.error("iteration %d is not recorded yet, and is not saved", self.progress.iteration)
            return
        nonfinite = sum(verdict.nonfinite for verdict in self.watch.drain())
        if nonfinite and self.train.on_nonfinite == "stop":
            return
        self.progress.skipped += nonfinite
        if self.progress.iteration > 0 and self.model.ranks.is_main:
            self._write(best=False)
            logger.info("iteration %d is saved; --auto_resume goes on from it", self.progress.iteration)

    def _reporter(self) -> Reporter:
        return Reporter(
            self.experiment,
            start=self.progress.iteration,
            validated=self.progress.validated_at,
            total=self.last_iteration,
            tensorboard=bool(self.options.logger.use_tb_logger),
            speaks=self.model.ranks.is_main,
        )

    def _log_due(self, iteration: int) -> bool:
        return iteration % self.options.logger.print_freq == 0 or iteration == self.last_iteration

    def _log(self, log: Reporter, result: StepResult) -> None:
        losses = {name: float(loss) for name, loss in distributed.mean_over_ranks(result.losses).items()}
        self._losses_are_due = False
        now = time.perf_counter()
        share = self._waited / max(now - self._began, 1e-9)
        self._waited, self._began = 0.0, now
        rate = self.model.networks["net_g"].learning_rate
        iteration = self.progress.iteration
        log.losses(iteration, self.loader.epoch_of(iteration), rate, losses, share)

    def _judge(self, verdicts: list[Verdict]) -> bool:
        """Act on what the ranks agreed on; returns whether to save and leave.

        Raises:
            NonFiniteError: something was not finite and ``on_nonfinite`` is ``stop``, or too many were skipped. What
                was trained until then is saved, but for models of several networks, of which one may have moved.
        """
        train = self.train
        for verdict in verdicts:
            if not verdict.nonfinite:
                continue
            samples = ", ".join(verdict.samples)
            where = f"iteration {verdict.iteration}: a loss or gradient is NaN or Inf; samples: {samples}"
            if train.on_nonfinite == "stop":
                if len(self.model.networks) == 1 and verdict.iteration > 1:
                    self.progress.iteration = verdict.iteration - 1
                    self._save(best=False)
                    where += f". Iteration {self.progress.iteration} is saved"
                raise NonFiniteError(
                    f"{where}. The weights were not changed. Look at these samples, lower the learning rate, set "
                    "train.grad_clip, or train.on_nonfinite: skip"
                )
            self.progress.skipped += 1
            if self.progress.skipped > train.max_skips:
                self._save(best=False)
                raise NonFiniteError(f"{where}. More than train.max_skips: {train.max_skips} iterations were skipped")
        return any(verdict.stop for verdict in verdicts)

    def _validation_is_missing(self) -> bool:
        """Whether a signal or a kill came between the last step and its validation."""
        iteration = self.progress.iteration
        return 0 < iteration != self.progress.validated_at and self.validator.due(iteration, self.last_iteration)

    def _scheduled(self, iteration: int) -> bool:
        return iteration % self.options.logger.save_checkpoint_freq == 0 or iteration == self.last_iteration

    def _save(self, *, best: bool) -> None:
        """Save on rank 0; the others wait, and stop where it cannot."""
        failed: Exception | None = None
        try:
            self._write(best=best)
        except Exception as error:
            failed = error
        raise_together(failed)

    def _write(self, *, best: bool) -> None:
        """Weights for use elsewhere, checkpoint, pruning. Only rank 0 writes.

        The checkpoint comes after the weights, so that one that is there implies that they are.
        """
        if not self.model.ranks.is_main:
            return
        iteration = self.progress.iteration
        labels = ["latest"] + [str(iteration)] * self._scheduled(iteration) + ["best"] * best
        for label in labels:
            self._ship(label)
        self.checkpointer.save(iteration, self.model.state(), self.progress.as_dict(), self.options.raw)
        self._prune()

    def _prune(self) -> None:
        self.checkpointer.prune(self.progress.iteration, scheduled=self._scheduled, best=self._best_iteration())

    def _ship(self, label: str) -> None:
        """Write ``models/net_<g>_<label>.pth`` in BasicSR's format for every network.

        Raises:
            CheckpointError: one could not be written.
        """
        for name, network in self.model.networks.items():
            average = network.average.network.state_dict() if network.average else None
            path = self.experiment.models / f"{name}_{label}.pth"
            try:
                save_weights(path, params=network.bare.state_dict(), params_ema=average)
            except OSError as error:
                raise self.checkpointer.cannot_write(str(path), self.progress.iteration, error) from error

    def _best_iteration(self) -> int | None:
        """Iteration of the best value of the first metric on the first set that has one; None: that is not kept."""
        if not self.options.logger.keep_best:
            return None
        sets, metrics = self.validator.datasets, self.validator.val.metrics
        records = (self.progress.best.get(name, {}).get(metric) for name in sets for metric in metrics)
        return next((int(record["iteration"]) for record in records if record), None)
