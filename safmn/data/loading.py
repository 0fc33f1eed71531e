"""Load micro-batches ahead: in worker processes, in a thread, or in the calling thread."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader

from safmn.data.sample_keys import Batch, KeyedDataset, SampleKey
from safmn.data.workers import died, exit_code_of, is_death, one_opencv_thread, prepare_worker
from safmn.errors import DataError, UserError, first_line
from safmn.imports import imported
from safmn.own_code import described, full_traceback, is_from_own_code
from safmn.system.memory import more_shared_memory, shared_memory
from safmn.system.prefetch import prefetch

logger = logging.getLogger(__name__)

_SIGNS_OF_SHARED_MEMORY = ("shared memory", "shared file mapping")  # torch's words; the latter on Windows
_IN_WORKER = "in DataLoader worker process"  # part of torch's message for an error of the data set in a worker


def start_loading(
    keyed: KeyedDataset, keys: Iterator[list[SampleKey]], *, workers: int, ahead: int, pin_memory: bool
) -> Loading:
    """Start to load micro-batches, in the way that suits the data set.

    Args:
        keys: the keys of each micro-batch.
        workers: worker processes; with 0 this process loads.
        ahead: micro-batches to load ahead (per worker).
        pin_memory: put the tensors into page-locked memory.
    """
    dataset = keyed.dataset
    if getattr(dataset, "on_device", False):
        if workers:
            logger.info("loader workers are not needed for a data set on the GPU, and not started")
        # A thread draws the crops on the CPU. The calling thread gathers the pixels, in order with its other kernels.
        plan = functools.partial(dataset.plan, seed=keyed.seed)
        return _ThreadLoading(plan, keys, ahead, finish=dataset.gather)
    if workers:
        return _WorkerLoading(keyed, keys, workers=workers, ahead=ahead, pin_memory=pin_memory)
    load = _pinned(keyed.batch) if pin_memory else keyed.batch
    return _ThreadLoading(load, keys, ahead) if keyed.is_pure else Loading(load, keys)


class Loading:
    """Loads micro-batches in order, each when it is taken."""

    def __init__(self, load: Callable[[list[SampleKey]], Any], keys: Iterator[list[SampleKey]]) -> None:
        self.load, self.keys = load, keys

    def take(self) -> Batch:
        """Return the next micro-batch."""
        batch: Batch = self.load(next(self.keys))
        return batch

    def close(self) -> None:
        """Stop loading. Can be called twice."""


class _Failure:
    """An error that a worker sends to the main process."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def raise_it(self) -> NoReturn:
        raise self.error


class _ThreadLoading(Loading):
    """Loads micro-batches ahead in a thread; the calling thread applies ``finish`` to each."""

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
        if self.error is not None:  # a second call raises it again
            raise self.error
        try:
            loaded = next(self.loaded)
        except BaseException as error:
            self.error = error
            raise
        return self.finish(loaded) if self.finish else loaded

    def close(self) -> None:
        self.loaded.close()


class _WorkerLoading(Loading):
    """Loads micro-batches ahead in torch's worker processes, in one endless pass without a stop between epochs."""

    def __init__(
        self, keyed: KeyedDataset, keys: Iterator[list[SampleKey]], *, workers: int, ahead: int, pin_memory: bool
    ) -> None:
        loader: DataLoader[Any] = DataLoader(
            _Fetcher(keyed),  # type: ignore[arg-type]
            batch_sampler=_Keys(keys),  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            prefetch_factor=ahead,
            worker_init_fn=functools.partial(prepare_worker, parent=os.getpid()),
            generator=torch.Generator(),  # without it, starting the workers draws from the global generator
        )
        with one_opencv_thread(), _explain_pickling(keyed.dataset):
            self.batches: Any = iter(loader)

    def take(self) -> Batch:
        try:
            batch: Batch | _Failure = next(self.batches)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # ConnectionError and EOFError: the worker that sent a tensor is gone, or the data set raised the error.
            if not is_death(error) and (isinstance(error, RuntimeError) or _IN_WORKER in str(error)):
                raise
            raise died(error, exit_code_of(self.batches._workers)) from error
        if isinstance(batch, _Failure):
            batch.raise_it()
        return batch

    def close(self) -> None:
        # torch ends its workers when the iterator is collected, but after an error the traceback keeps the iterator
        # alive. There is no public method.
        self.batches._shutdown_workers()


@contextlib.contextmanager
def _explain_pickling(dataset: Any) -> Iterator[None]:
    """Raise a DataError that says what to do if the data set cannot be sent to a worker that is not forked."""
    try:
        yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        method = multiprocessing.get_start_method()
        if method == "fork":
            raise
        raise DataError(
            f"{type(dataset).__name__} cannot be sent to a loader worker, which this system starts anew ({method}): "
            f"{first_line(error)}. Define its class and its functions at the top level of a file of `imports`, and let "
            "it open files when it reads. num_worker_per_gpu: 0 loads without workers."
        ) from error


class _Keys:
    """The keys as torch's ``batch_sampler``."""

    def __init__(self, keys: Iterator[list[SampleKey]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.keys


class _Fetcher:
    """The data set as torch's ``dataset``: loads a whole batch per call, and returns a user's mistake as a _Failure."""

    def __init__(self, keyed: KeyedDataset) -> None:
        self.keyed = keyed

    def __reduce__(self) -> Any:
        """Pickle for a spawned worker: it first imports the files of ``imports``, where the data set may be defined."""
        return _fetcher, (imported(), self.keyed)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch | _Failure:
        try:
            with _explain_shared_memory():
                return _shared(self.keyed.batch(keys))
        except (UserError, OSError) as error:
            return _Failure(error)
        except Exception as error:
            if not is_from_own_code(error):
                raise
            return _Failure(_failed_in_worker(error))


def _failed_in_worker(error: Exception) -> DataError:
    """Return the error that the main process raises for a bug in a user's data set; its traceback is sent as text."""
    failed = DataError(f"a data set failed in a loader worker. {described(error)}")
    failed.worker_traceback = full_traceback(error)  # type: ignore[attr-defined]
    return failed


def _fetcher(_: Any, keyed: KeyedDataset) -> _Fetcher:
    return _Fetcher(keyed)


def _shared(batch: Batch) -> Batch:
    """Move a batch's tensors to shared memory, and raise an error if there is no room.

    If torch moves them when it sends the batch, its thread drops the batch on such an error, and the main process waits
    forever.
    """
    return {name: value.share_memory_() if torch.is_tensor(value) else value for name, value in batch.items()}


@contextlib.contextmanager
def _explain_shared_memory() -> Iterator[None]:
    """Raise a DataError that says what to do if shared memory is full."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS_OF_SHARED_MEMORY):
            raise
        raise DataError(
            f"{shared_memory()} has no room for a batch ({first_line(error)}). {more_shared_memory()}, or set "
            "num_worker_per_gpu or prefetch_factor lower; num_worker_per_gpu: 0 does without."
        ) from error


def _unchanged(batch: Any) -> Any:
    return batch


def _pinned(load: Callable[[list[SampleKey]], Batch]) -> Callable[[list[SampleKey]], Batch]:
    """Return ``load`` with the tensors of its result in page-locked memory."""

    def load_pinned(keys: list[SampleKey]) -> Batch:
        batch = load(keys)
        return {name: value.pin_memory() if torch.is_tensor(value) else value for name, value in batch.items()}

    return load_pinned
