"""Batches of a run whose patch and batch sizes change: one loader for each stage, one after the other."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

from safmn.data.loader import TrainingLoader
from safmn.data.sample_keys import Batch, SampleKey
from safmn.data.stages import Stage, of_size
from safmn.errors import OptionError

logger = logging.getLogger(__name__)


class ProgressiveLoader:
    """The training loaders of several stages as one.

    A stage begins with a new epoch, so the samples of an iteration are a function of the seed and the iteration, and a
    run can resume in the middle of a stage.

    Args:
        dataset: makes the largest patches; see :class:`~safmn.data.sample_keys.KeyedDataset`.
        stages: see :func:`safmn.data.stages.stages_of`.
        arguments: those of :class:`~safmn.data.loader.TrainingLoader`, without ``batch_size``.

    Attributes:
        parts: the loader of each stage; the iterations of each are counted from its first one.

    Raises:
        OptionError, DataError: see :class:`~safmn.data.loader.TrainingLoader`; or the data set keeps samples of earlier
            batches, which may have another size.
    """

    def __init__(self, dataset: Any, stages: Sequence[Stage], **arguments: Any) -> None:
        if getattr(getattr(dataset, "degradation", None), "mode", "") == "batch_pool":
            raise OptionError(
                "datasets.train.iters: with degradation: {mode: batch_pool}, samples wait for later batches, so their "
                "size cannot change: set mode: per_sample, or remove iters"
            )
        self.stages = list(stages)
        self.parts: list[TrainingLoader] = []
        epoch = 0
        for stage in stages:
            part = TrainingLoader(
                of_size(dataset, stage.gt_size),
                batch_size=stage.batch_size,
                gt_size=stage.gt_size,
                first_epoch=epoch,
                **arguments,
            )
            self.parts.append(part)
            if stage.last is not None:
                epoch += math.ceil((stage.last - stage.first + 1) / part.iterations_per_epoch)

    @property
    def keyed(self) -> Any:
        """The data set of the first stage."""
        return self.parts[0].keyed

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        return self.parts[0].num_workers

    @property
    def iterations_per_epoch(self) -> str:
        """Iterations per epoch, in each stage."""
        return ", ".join(str(part.iterations_per_epoch) for part in self.parts)

    @property
    def global_batch(self) -> str:
        """Samples per iteration, in each stage."""
        return ", ".join(str(part.global_batch) for part in self.parts)

    def epoch_of(self, iteration: int) -> int:
        """Return the epoch (from 0) of an iteration (from 1)."""
        number = self._stage_of(iteration)
        return self.parts[number].epoch_of(iteration - self.stages[number].first + 1)

    def _stage_of(self, iteration: int) -> int:
        found = (number for number, stage in enumerate(self.stages) if stage.last is None or iteration <= stage.last)
        return next(found)

    def _remaining(self, start: int) -> Iterator[tuple[int, int, int | None]]:
        """Yield each stage that goes on after iteration ``start``: number, its iterations done, and those to come."""
        for number in range(self._stage_of(start + 1), len(self.stages)):
            stage = self.stages[number]
            done = max(start - stage.first + 1, 0)
            yield number, done, None if stage.last is None else stage.last - stage.first + 1 - done

    def keys(self, start: int) -> Iterator[list[SampleKey]]:
        """Yield the keys of this rank's micro-batches from iteration ``start + 1`` on, without end."""
        for number, done, count in self._remaining(start):
            part = self.parts[number]
            yield from itertools.islice(part.keys(done), None if count is None else count * part.accumulate)

    def batches(self, start: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of iteration ``start + 1``, ``start + 2``, ...; see :class:`TrainingLoader`.

        The workers of a stage end with it.
        """
        self.close()
        for number, done, count in self._remaining(start):
            stage, part = self.stages[number], self.parts[number]
            logger.info("from iteration %d: %s", stage.first + done, stage)
            yield from itertools.islice(part.batches(done), count)
            part.close()

    def close(self) -> None:
        """Stop loading ahead. The next call of :meth:`batches` begins again."""
        for part in self.parts:
            part.close()
