"""The endless sequence of training batches: from any iteration on, in an order that depends only on the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from safmn.data.augmentations import Augmenter
from safmn.data.loading import Loading, start_loading
from safmn.data.sample_keys import Batch, KeyedDataset, SampleKey
from safmn.errors import DataError, OptionError

_ORDER_STREAM = (0x5AF,)  # separates the generator of an epoch's order from those of its samples
_LONGEST_EPOCH = 2**31  # samples; their order takes eight bytes each


class TrainingLoader:
    """The batches of a training run.

    Epoch ``e`` visits the enlarged indices in a random order drawn from (seed, e). An iteration takes the next
    ``batch_size * world_size * accumulate`` of them; an incomplete rest is dropped. Micro-step ``a`` of rank ``r``
    takes positions ``[a * N * b + r * b, + b)`` of these (N ranks, b samples per micro-batch). So the samples of an
    iteration do not depend on the numbers of ranks and micro-steps, and any iteration is found without replaying the
    earlier ones.

    Args:
        dataset: see :class:`~safmn.data.sample_keys.KeyedDataset`.
        batch_size: samples per rank and micro-step.
        seed: the run's seed, not negative.
        rank, world_size: this process among those that train together.
        accumulate: micro-batches per iteration.
        enlarge_ratio: how many times an epoch visits every image (BasicSR's ``dataset_enlarge_ratio``).
        num_workers: worker processes. With 0, a thread of this process loads ahead; data sets that use the global
            random generators are loaded by the calling thread.
        pin_memory: page-locked batches, for asynchronous copies to a CUDA device; no effect without one.
        prefetch_factor: micro-batches loaded ahead, per worker.
        augmentations: the training set's key of this name.
        gt_size: side that the GT patches must have; larger ones are cut.
        first_epoch: number of the first epoch, for a stage that follows others.

    Raises:
        OptionError: an augmentation is wrong, or the data set makes its batches on the GPU, where there are none.
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
        augmentations: Sequence[Mapping[str, Any]] = (),
        gt_size: int | None = None,
        first_epoch: int = 0,
    ) -> None:
        if augmentations and getattr(dataset, "on_device", False):
            raise OptionError(
                "datasets.train.augmentations: a PatchStore with device: cuda makes its batches on the GPU, without "
                "augmentations: set datasets.train.device: cpu, or leave augmentations out"
            )
        augmenter = Augmenter(augmentations) if augmentations else None
        self.keyed = KeyedDataset(dataset, seed, augmenter, gt_size=gt_size)
        self.first_epoch = first_epoch
        self.batch_size, self.rank, self.world_size, self.accumulate = batch_size, rank, world_size, accumulate
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.enlarged_length = math.ceil(self.keyed.length * enlarge_ratio)
        self.global_batch = batch_size * world_size * accumulate
        self._loading: Loading | None = None
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
    def parts(self) -> list[TrainingLoader]:
        """The loader of each stage: this one alone."""
        return [self]

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations (optimiser steps) per epoch."""
        return self.enlarged_length // self.global_batch

    def epoch_of(self, iteration: int) -> int:
        """Return the epoch (from 0) of an iteration (from 1)."""
        return self.first_epoch + max(iteration - 1, 0) // self.iterations_per_epoch

    def keys(self, start: int) -> Iterator[list[SampleKey]]:
        """Yield the keys of this rank's micro-batches from iteration ``start + 1`` on, without end."""
        epoch, position = divmod(start, self.iterations_per_epoch)
        epoch += self.first_epoch
        stride = self.world_size * self.batch_size
        while True:
            order = self._order(epoch)
            for iteration in range(position, self.iterations_per_epoch):
                for micro_step in range(self.accumulate):
                    first = iteration * self.global_batch + micro_step * stride + self.rank * self.batch_size
                    yield [SampleKey(epoch, index) for index in order[first : first + self.batch_size].tolist()]
            epoch, position = epoch + 1, 0

    def batches(self, start: int) -> Iterator[list[Batch]]:
        """Yield the list of ``accumulate`` micro-batches of iteration ``start + 1``, ``start + 2``, ... without end.

        A micro-batch has the keys of the data set's samples: tensors are stacked (``lq``, ``gt``: float32,
        (B, C, H, W)), the rest are lists (``lq_path``, ``gt_path``). ``keys`` lists the :class:`SampleKey` of each
        sample. A second call ends the first one's loading.

        Raises:
            DataError: an image cannot be read or does not fit; names it. Raised when its batch is due.
        """
        self.close()
        arrange = getattr(self.keyed.dataset, "arrange", None)
        keys = self.keys(start)
        if arrange is not None:  # the data set wants its samples in another order, which also depends only on the seed
            keys = arrange(self.keys, start=start, accumulate=self.accumulate, seed=self.keyed.seed)
        self._loading = loading = start_loading(
            self.keyed, keys, workers=self.num_workers, ahead=self.prefetch_factor, pin_memory=self.pin_memory
        )
        try:
            while True:
                yield [loading.take() for _ in range(self.accumulate)]
        finally:
            loading.close()

    def close(self) -> None:
        """Stop loading ahead: end workers and threads. The next call of :meth:`batches` starts them again."""
        if self._loading is not None:
            self._loading.close()
            self._loading = None

    def _order(self, epoch: int) -> np.ndarray:
        """Return the enlarged indices in the order of this epoch: (enlarged_length,) int64."""
        sequence = np.random.SeedSequence([self.keyed.seed, epoch], spawn_key=_ORDER_STREAM)
        return np.random.Generator(np.random.Philox(sequence)).permutation(self.enlarged_length)
