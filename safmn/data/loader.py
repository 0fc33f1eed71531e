"""Training batches for ever, from any iteration, in an order that depends on the seed alone."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils.data import DataLoader

from safmn.data.keys import Batch, KeyedDataset, SampleKey
from safmn.data.workers import died, exit_code_of, is_death, one_opencv_thread, prepare_worker
from safmn.errors import DataError, UserError, first_line
from safmn.imports import imported
from safmn.system.prefetch import prefetch

logger = logging.getLogger(__name__)

_ORDER_STREAM = (0x5AF,)  # keeps the generator of an epoch's order apart from those of its samples
_IN_WORKER = "in DataLoader worker process"  # in what torch makes of an error of the data set's own
_LONGEST_EPOCH = 2**31  # samples: their order takes eight bytes each


class TrainingLoader:
    """The batches of a training run.

    Epoch ``e`` visits a permutation, drawn from (seed, e), of the enlarged indices. An iteration takes the next
    ``batch_size * world_size * accumulate`` of them (an incomplete rest is dropped); micro-step ``a`` of rank ``r``
    takes positions ``[a * N * b + r * b, + b)`` of these. So the samples of an iteration do not depend on how they are
    spread over ranks and micro-steps, and iteration ``i`` is found without replaying those before it.

    Args:
        dataset: see :class:`~safmn.data.keys.KeyedDataset`.
        batch_size: samples per rank and micro-step.
        seed: the run's seed, not negative.
        rank, world_size: this process among those that train together.
        accumulate: micro-batches per iteration.
        enlarge_ratio: how many times an epoch visits every image (BasicSR's ``dataset_enlarge_ratio``).
        num_workers: processes that load. With 0, a thread of this process loads ahead, except for data sets that use
            the global random generators, which are asked in turn.
        pin_memory: page-locked batches, for asynchronous copies to a CUDA device; no effect without one.
        prefetch_factor: micro-batches loaded ahead, per worker.

    Raises:
        DataError: the enlarged data set is smaller than one iteration's batch.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        enlarge_ratio: float = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int = 2,
    ) -> None:
        self.keyed = KeyedDataset(dataset, seed)
        self.batch_size, self.rank, self.world_size, self.accumulate = batch_size, rank, world_size, accumulate
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.enlarged_length = math.ceil(self.keyed.length * enlarge_ratio)
        self.global_batch = batch_size * world_size * accumulate
        self._source: _Source | None = None
        if self.enlarged_length > _LONGEST_EPOCH:
            raise DataError(
                f"an epoch would have {self.enlarged_length:,} samples, which no memory can put in order; set "
                f"dataset_enlarge_ratio lower than {enlarge_ratio:g}"
            )
        if self.enlarged_length < self.global_batch:
            raise DataError(
                f"the training set has {self.keyed.length} images; with dataset_enlarge_ratio {enlarge_ratio} that is "
                f"less than one iteration's batch of {self.global_batch}. Set dataset_enlarge_ratio to at least "
                f"{math.ceil(self.global_batch / max(self.keyed.length, 1))}, or use a smaller batch."
            )

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations (optimiser steps) per epoch."""
        return self.enlarged_length // self.global_batch

    def epoch_of(self, iteration: int) -> int:
        """The epoch, from 0, that iteration ``iteration``, from 1, belongs to."""
        return max(iteration - 1, 0) // self.iterations_per_epoch

    def keys(self, start: int) -> Iterator[list[SampleKey]]:
        """The keys of this rank's micro-batches from iteration ``start + 1`` on, for ever."""
        epoch, position = divmod(start, self.iterations_per_epoch)
        stride = self.world_size * self.batch_size
        while True:
            order = self._order(epoch)
            for iteration in range(position, self.iterations_per_epoch):
                for micro_step in range(self.accumulate):
                    first = iteration * self.global_batch + micro_step * stride + self.rank * self.batch_size
                    yield [SampleKey(epoch, index) for index in order[first : first + self.batch_size].tolist()]
            epoch, position = epoch + 1, 0

    def batches(self, start: int) -> Iterator[list[Batch]]:
        """For iteration ``start + 1``, ``start + 2``, ... for ever: the list of its ``accumulate`` micro-batches.

        A micro-batch holds what the data set's samples hold, stacked (``lq``, ``gt``: float32, (B, C, H, W)) or listed
        (``lq_path``, ``gt_path``), and ``keys``, the list of its :class:`SampleKey`. A later call ends an earlier one.

        Raises:
            DataError: an image could not be read or does not fit; names it. Raised when its batch is due.
        """
        self.close()
        self._source = source = self._open(self._arranged(start))
        try:
            while True:
                yield [source.take() for _ in range(self.accumulate)]
        finally:
            source.close()

    def close(self) -> None:
        """Stop loading ahead: ends workers and threads. The next call of :meth:`batches` starts them again."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def _arranged(self, start: int) -> Iterator[list[Any]]:
        """The keys from iteration ``start + 1`` on, in the order that the data set wants them, if it has one."""
        arrange = getattr(self.keyed.dataset, "arrange", None)
        if arrange is None:
            return self.keys(start)
        arranged: Iterator[list[Any]] = arrange(
            self.keys, start=start, accumulate=self.accumulate, seed=self.keyed.seed
        )
        return arranged

    def _order(self, epoch: int) -> np.ndarray:
        """The enlarged indices in the order of this epoch: (enlarged_length,) int64."""
        sequence = np.random.SeedSequence([self.keyed.seed, epoch], spawn_key=_ORDER_STREAM)
        return np.random.Generator(np.random.Philox(sequence)).permutation(self.enlarged_length)

    def _open(self, keys: Iterator[list[SampleKey]]) -> _Source:
        dataset = self.keyed.dataset
        if getattr(dataset, "on_device", False):
            if self.num_workers:
                logger.info("loader workers are not needed for a data set on the GPU, and not started")
            # Planned ahead on the CPU; gathered by the caller's thread, in the order of its own kernels.
            plan = functools.partial(dataset.plan, seed=self.keyed.seed)
            return _ThreadSource(plan, keys, self.prefetch_factor, finish=dataset.gather)
        if self.num_workers:
            return _WorkerSource(self, keys)
        if self.keyed.is_pure:
            load = self.keyed.batch
            return _ThreadSource(_pinned(load) if self.pin_memory else load, keys, self.prefetch_factor)
        return _Source(_pinned(self.keyed.batch) if self.pin_memory else self.keyed.batch, keys)


class _Source:
    """Micro-batches in order, each loaded when it is taken."""

    def __init__(self, load: Callable[[list[SampleKey]], Any], keys: Iterator[list[SampleKey]]) -> None:
        self.load, self.keys = load, keys

    def take(self) -> Batch:
        """The next micro-batch."""
        batch: Batch = self.load(next(self.keys))
        return batch

    def close(self) -> None:
        """Stop loading. May be called twice."""


class _Failure:
    """An error on its way from a worker to the main process."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def raise_it(self) -> NoReturn:
        raise self.error


class _ThreadSource(_Source):
    """Micro-batches loaded ahead by a thread; ``finish`` is applied to each in the thread that takes it."""

    def __init__(
        self,
        load: Callable[[list[SampleKey]], Any],
        keys: Iterator[list[SampleKey]],
        ahead: int,
        finish: Callable[[Any], Batch] | None = None,
    ) -> None:
        super().__init__(load, keys)
        self.finish = finish
        self.error: BaseException | None = None
        self.loaded = prefetch(map(load, keys), ahead)

    def take(self) -> Batch:
        if self.error is not None:  # whoever asks again gets it again
            raise self.error
        try:
            loaded = next(self.loaded)
        except BaseException as error:
            self.error = error
            raise
        return self.finish(loaded) if self.finish else loaded

    def close(self) -> None:
        self.loaded.close()


class _WorkerSource(_Source):
    """Micro-batches loaded ahead by torch's worker processes, one endless pass, so that no epoch end stalls."""

    def __init__(self, training: TrainingLoader, keys: Iterator[list[SampleKey]]) -> None:
        loader: DataLoader[Any] = DataLoader(
            _Fetcher(training.keyed),  # type: ignore[arg-type]
            batch_sampler=_Keys(keys),  # type: ignore[arg-type]
            num_workers=training.num_workers,
            collate_fn=_as_it_is,
            pin_memory=training.pin_memory,
            prefetch_factor=training.prefetch_factor,
            worker_init_fn=functools.partial(prepare_worker, parent=os.getpid()),
            generator=torch.Generator(),  # else starting the workers would draw from the global generator
        )
        with one_opencv_thread():
            self.batches: Any = iter(loader)

    def take(self) -> Batch:
        try:
            batch: Batch | _Failure = next(self.batches)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # of the latter two, a tensor whose sender is gone, unless the data set raised it
            if not is_death(error) and (isinstance(error, RuntimeError) or _IN_WORKER in str(error)):
                raise
            raise died(error, exit_code_of(self.batches._workers)) from error
        if isinstance(batch, _Failure):
            batch.raise_it()
        return batch

    def close(self) -> None:
        # Private, but there is no public way: torch ends its workers when the iterator is collected, and after an error
        # the traceback keeps it alive.
        self.batches._shutdown_workers()


class _Keys:
    """What torch's loader takes as ``batch_sampler``."""

    def __init__(self, keys: Iterator[list[SampleKey]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.keys


class _Fetcher:
    """What torch's loader takes as ``dataset``: a whole batch per call; a user's mistake travels as the error it is."""

    def __init__(self, keyed: KeyedDataset) -> None:
        self.keyed = keyed

    def __reduce__(self) -> Any:
        """For a worker that is spawned: what ``imports`` named comes first, for the data set may be defined there."""
        return _fetcher, (imported(), self.keyed)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch | _Failure:
        try:
            with _explain_shared_memory():
                return _shared(self.keyed.batch(keys))
        except (UserError, OSError) as error:
            return _Failure(error)


def _fetcher(_: Any, keyed: KeyedDataset) -> _Fetcher:
    return _Fetcher(keyed)


def _shared(batch: Batch) -> Batch:
    """The batch with its tensors in shared memory.

    Torch would put them there when it sends the batch, from a thread that can but drop it when there is no room: the
    main process would wait for ever.
    """
    return {name: value.share_memory_() if torch.is_tensor(value) else value for name, value in batch.items()}


@contextlib.contextmanager
def _explain_shared_memory() -> Iterator[None]:
    """Shared memory that is full, which collating meets as well, becomes a DataError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        raise DataError(
            f"/dev/shm has no room for a batch ({first_line(error)}). Give it more (docker run --shm-size=2g), or set "
            "num_worker_per_gpu or prefetch_factor lower; num_worker_per_gpu: 0 does without."
        ) from error


def _as_it_is(batch: Any) -> Any:
    return batch


def _pinned(load: Callable[[list[SampleKey]], Batch]) -> Callable[[list[SampleKey]], Batch]:
    """``load``, with the tensors of the result in page-locked memory."""

    def load_pinned(keys: list[SampleKey]) -> Batch:
        batch = load(keys)
        return {name: value.pin_memory() if torch.is_tensor(value) else value for name, value in batch.items()}

    return load_pinned
