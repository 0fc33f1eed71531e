"""Save a run: weights for use elsewhere, then the checkpoint, then remove checkpoints that are no longer needed."""

from __future__ import annotations

from safmn.options import Options
from safmn.options.types import NETWORK_KEYS
from safmn.runtime.agreement import raise_together
from safmn.training.checkpoint import Checkpointer
from safmn.training.experiment import Experiment
from safmn.training.models import Model
from safmn.training.models.base_model import training_section
from safmn.training.progress import Progress
from safmn.training.validation import Validator
from safmn.weights import Origin, origin_of, save_weights


class Saver:
    """Writes everything that a run saves. Only rank 0 writes.

    Args:
        options: the run's option file.
        model: networks and their state.
        validator: names the first set and metric, which decide the best iteration.
        experiment: folder of the run.
        checkpointer: writes and prunes the checkpoints.
    """

    def __init__(
        self, options: Options, model: Model, validator: Validator, experiment: Experiment, checkpointer: Checkpointer
    ) -> None:
        self.options = options
        self.model = model
        self.validator = validator
        self.experiment = experiment
        self.checkpointer = checkpointer
        self.last_iteration = training_section(options).total_iter

    def due(self, iteration: int) -> bool:
        """Return whether the option file schedules a checkpoint of this iteration."""
        return iteration % self.options.logger.save_checkpoint_freq == 0 or iteration == self.last_iteration

    def save_together(self, progress: Progress, *, best: bool = False) -> None:
        """Save on rank 0 while the other ranks wait; every rank must call this.

        Args:
            best: the last validation was the best so far: also write ``net_g_best.pth``.

        Raises:
            CheckpointError: on rank 0, something could not be written.
            RankError: on the other ranks, in the same case.
        """
        failed: Exception | None = None
        try:
            self.save(progress, best=best)
        except Exception as error:
            failed = error
        raise_together(failed)

    def save(self, progress: Progress, *, best: bool = False) -> None:
        """Save on rank 0 without waiting for the other ranks; see :meth:`save_together`."""
        if not self.model.ranks.is_main:
            return
        iteration = progress.iteration
        labels = ["latest"] + [str(iteration)] * self.due(iteration) + ["best"] * best
        for label in labels:
            self._save_weights(label, iteration)
        # Write the checkpoint after the weights: then every checkpoint has its weights.
        self.checkpointer.save(iteration, self.model.state(), progress.as_dict(), self.options.raw)
        self.prune(progress)

    def prune(self, progress: Progress) -> None:
        """Remove the checkpoints that the option file does not keep."""
        self.checkpointer.prune(progress.iteration, scheduled=self.due, best=self.best_iteration(progress))

    def best_iteration(self, progress: Progress) -> int | None:
        """Return the iteration with the best value of the first metric, on the first set with a stored value.

        None if no value is stored yet, or if ``keep_best`` is false.
        """
        if not self.options.logger.keep_best:
            return None
        sets, metrics = self.validator.datasets, self.validator.val.metrics
        records = (progress.best.get(name, {}).get(metric) for name in sets for metric in metrics)
        return next((int(record["iteration"]) for record in records if record), None)

    def _save_weights(self, label: str, iteration: int) -> None:
        """Write ``models/net_<g>_<label>.pth`` in BasicSR's format for every network.

        Raises:
            CheckpointError: a file could not be written.
        """
        for name, network in self.model.networks.items():
            average = network.average.network.state_dict() if network.average else None
            path = self.experiment.models / f"{name}_{label}.pth"
            try:
                save_weights(
                    path, params=network.bare.state_dict(), params_ema=average, metadata=self._origin(name).metadata()
                )
            except OSError as error:
                raise self.checkpointer.cannot_write(str(path), iteration, error) from error

    def _origin(self, name: str) -> Origin:
        """Return what built a network, for the note in its weight files."""
        section = getattr(self.options, NETWORK_KEYS[name].network)
        is_generator = name == "net_g"
        train_set = self.options.datasets.get("train") if is_generator else None
        return origin_of(
            section,
            scale=self.options.scale if is_generator else 0,
            imports=self.options.imports,
            train_set=train_set,
        )
