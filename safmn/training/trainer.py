"""The training loop. Its parts are built in :mod:`safmn.training.build`."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safmn.data.workers import explain_death
from safmn.errors import FILE_ONLY, CheckpointError, UserError
from safmn.options import Options
from safmn.options.types import NETWORK_KEYS
from safmn.runtime import distributed
from safmn.runtime.agreement import agreed, explain_lost_ranks
from safmn.runtime.random_state import seed_everything
from safmn.system.signals import Interrupt
from safmn.training.checkpoint import Checkpoint
from safmn.training.device_batches import batches_on_device
from safmn.training.experiment import Experiment
from safmn.training.explained import explained_step
from safmn.training.models import Model, StepResult
from safmn.training.models.base_model import checked_result, training_section
from safmn.training.progress import Progress
from safmn.training.reporter import Reporter
from safmn.training.saving import Saver
from safmn.training.step_flags import IterationFlags, StepFlags
from safmn.training.trackers import open_trackers
from safmn.training.validation import Interrupted, Validator

logger = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """A loss or gradient is NaN or Inf; the weights are those of the iteration before."""


def _optimizer(options: Mapping[str, Any], network: str) -> tuple[Any, Any]:
    """Return type and ``amsgrad`` of the optimiser of ``net_g`` or ``net_d``. They decide what its state contains."""
    section = options["train"].get(NETWORK_KEYS[network].optimiser) or {}
    return section.get("type"), section.get("amsgrad", False)


class Trainer:
    """Trains ``model`` until the last iteration or a signal.

    Everything that decides the result is a function of the iteration (learning rate, batch, random state) or is in the
    checkpoint (networks, progress). So a run that was killed and resumed ends with the same bytes.
    """

    def __init__(
        self,
        options: Options,
        model: Model,
        loader: Any,
        validator: Validator,
        experiment: Experiment,
        saver: Saver,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.options = options
        self.model = model
        self.loader = loader
        self.validator = validator
        self.experiment = experiment
        self.saver = saver
        self.fingerprints = dict(fingerprints or {})
        self.progress = Progress(fingerprints=self.fingerprints)
        self.train = training_section(options)
        self.last_iteration = self.train.total_iter
        self.flags = StepFlags(model.execution.device, model.ranks)
        self._waited = 0.0  # seconds that the step waited for data since the last log line
        self._in_step = False
        self._losses_are_due = False  # a step is done, and its losses have yet to be averaged over the ranks

    def run(self) -> int:
        """Train; return the exit status: 0, or 128 + the signal that asked to stop (after saving)."""
        model, progress, log = self.model, self.progress, self._reporter()
        if progress.iteration >= self.last_iteration:
            logger.info("nothing to train: iteration %d of %d is done", progress.iteration, self.last_iteration)
        first = progress.iteration + 1
        try:
            with Interrupt() as interrupt, self._saved_on_error(), explain_death(), explain_lost_ranks():
                leave = self._validation_is_missing() and self._finish_iteration(log, interrupt, [])
                for batches in () if leave else self._batches():
                    progress.iteration = iteration = progress.iteration + 1
                    seed_everything(self.options.manual_seed, iteration, model.ranks.rank)
                    model.set_learning_rate(iteration)

                    self._in_step = True
                    with explained_step(self.options.source, batches, is_first=iteration == first):
                        result = checked_result(model, model.training_step(batches, iteration))  # the whole step
                    self._in_step, self._losses_are_due = False, self._log_due(iteration)

                    signal_number = interrupt.signal_number
                    losses = {} if model.execution.cuda_graph else result.losses  # a graph overwrites them
                    flags = self.flags.push(
                        iteration, result.nonfinite, stop=signal_number, batches=batches, losses=losses
                    )
                    if self._log_due(iteration):
                        self._log(log, result)
                    log.step()
                    if leave := self._finish_iteration(log, interrupt, flags):  # validate and save where it is time
                        break
                return interrupt.exit_status if leave else 0
        except Exception as error:
            logger.error("stopped: %s: %s", type(error).__name__, error, extra=FILE_ONLY)
            raise
        finally:
            log.close()
            self.loader.close()
            self.experiment.unlock()

    def _batches(self) -> Iterator[Sequence[Mapping[str, Any]]]:
        """Yield the micro-batches of each remaining iteration, on the device; measure the time spent waiting."""
        remaining = self.last_iteration - self.progress.iteration
        loaded = batches_on_device(self.loader.batches(self.progress.iteration), self.model.execution)
        batches = agreed(itertools.islice(loaded, remaining))
        self._began = time.perf_counter()
        for _ in range(remaining):
            asked = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - asked
            yield batch

    def _finish_iteration(self, log: Reporter, interrupt: Interrupt, flags: list[IterationFlags]) -> bool:
        """Validate and save if due; return whether the run was asked to stop. If it was, it has been saved."""
        iteration, saves = self.progress.iteration, self.saver.due(self.progress.iteration)
        validates = self.validator.due(iteration, self.last_iteration)
        if validates or saves or any(of.stop for of in flags):
            flags = flags + self.flags.drain()
        stop = max((of.stop for of in flags), default=0)
        interrupt.join(stop)
        self._handle_nonfinite(flags, log)
        leave, improved = bool(stop), False
        if validates and not leave:
            try:
                improved = self.validator.run(self.model, self.progress, log, lambda: bool(interrupt))
            except Interrupted:
                leave = True
        if leave or improved or saves:
            self.saver.save_together(self.progress, best=improved)
        return leave

    def _handle_nonfinite(self, flags: list[IterationFlags], log: Reporter) -> None:
        """Count and report the iterations with a NaN or Inf, on which the ranks agreed, or stop the run.

        Raises:
            NonFiniteError: ``on_nonfinite`` is ``stop``, or more than ``max_skips`` iterations were skipped. The run is
                saved before. Exception: with ``stop``, a model of several networks is not saved, because one of them
                may have changed.
        """
        train = self.train
        for of in flags:
            if not of.nonfinite:
                continue
            named = f" ({', '.join(of.losses)})" if of.losses else ""
            samples = ", ".join(of.samples)
            where = f"iteration {of.iteration}: a loss or gradient is NaN or Inf{named}; samples: {samples}"
            if train.on_nonfinite == "stop":
                if len(self.model.networks) == 1 and of.iteration > 1:
                    self.progress.iteration = of.iteration - 1
                    self.saver.save_together(self.progress)
                    where += f". Iteration {self.progress.iteration} is saved"
                raise NonFiniteError(
                    f"{where}. The weights were not changed. Look at these samples, lower the learning rate, set "
                    "train.grad_clip, or train.on_nonfinite: skip"
                )
            self.progress.skipped += 1
            every = distributed.on_all_ranks(of.samples)
            log.skipped(of.iteration, [sample for samples in every for sample in samples])
            if self.progress.skipped > train.max_skips:
                self.saver.save_together(self.progress)
                raise NonFiniteError(f"{where}. More than train.max_skips: {train.max_skips} iterations were skipped")

    def _reporter(self) -> Reporter:
        start, speaks = self.progress.iteration, self.model.ranks.is_main
        return Reporter(
            self.experiment,
            start=start,
            validated=self.progress.validated_at,
            total=self.last_iteration,
            speaks=speaks,
            trackers=open_trackers(self.options, self.experiment.root, start=start) if speaks else (),
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

    @contextlib.contextmanager
    def _saved_on_error(self) -> Iterator[None]:
        """Context that saves the newest complete iteration before an error leaves it."""
        try:
            yield
        except (NonFiniteError, CheckpointError):  # everything that can be saved was saved before
            raise
        except Exception:
            try:
                self._save_complete_iteration()
            except CheckpointError as failed:
                logger.error("%s", failed)
            raise

    def _save_complete_iteration(self) -> None:
        """Undo a step that failed, and save the iteration before it.

        Saves nothing if a NaN or Inf was found and ``on_nonfinite`` is ``stop``. The next run repeats that iteration
        and stops there.
        """
        if self._in_step:
            if not self.model.abandon_step():
                logger.error("iteration %d was done in part, and is not saved", self.progress.iteration)
                return
            self.progress.iteration -= 1
        elif self._losses_are_due:  # a rank is gone; saving now would leave a gap in the record of losses
            logger.error("iteration %d is not recorded yet, and is not saved", self.progress.iteration)
            return
        nonfinite = sum(of.nonfinite for of in self.flags.drain())
        if nonfinite and self.train.on_nonfinite == "stop":
            return
        self.progress.skipped += nonfinite
        if self.progress.iteration > 0 and self.model.ranks.is_main:
            self.saver.save(self.progress)
            logger.info("iteration %d is saved; --auto_resume goes on from it", self.progress.iteration)

    def _validation_is_missing(self) -> bool:
        """Return whether a signal or a kill came between the last step and its validation."""
        iteration = self.progress.iteration
        return 0 < iteration != self.progress.validated_at and self.validator.due(iteration, self.last_iteration)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint. An optimiser of another kind than the checkpoint's starts without its state.

        Raises:
            CheckpointError: the checkpoint holds other networks than this run trains.
        """
        before, now = checkpoint.options, self.options.raw
        changed = [name for name in self.model.networks if _optimizer(before, name) != _optimizer(now, name)]
        self.model.load_state(checkpoint.networks, new_optimizers=changed)
        self.progress = Progress.from_dict({**checkpoint.progress, "fingerprints": self.fingerprints})
        folder = self.saver.checkpointer.folder
        if self.model.ranks.is_main and checkpoint.path.absolute().parent == folder.absolute():
            self.saver.prune(self.progress)  # the kill may have come between saving and pruning
