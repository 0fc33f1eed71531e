"""The published pool of training pairs (BasicSR's ``queue_size``), holding keys instead of images.

BasicSR draws much of the degradation once per batch. To mix degradations, it swaps every batch with the same number of
pairs from a pool of earlier ones. Pairs leave the pool unchanged, so it is enough to pool their *keys* and to make a
pair when its key leaves. The pool then needs almost no memory, and the seed determines its state at any iteration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

_POOL_STREAM = (0x9001,)  # separates the pool's random numbers from those of orders and samples


class PooledKey(NamedTuple):
    """A sample's key, and the key of the first sample of the batch it was drawn with, which identifies that batch."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, as in SampleKey
    batch_epoch: int
    batch_index: int


def pooled(batches: Iterator[Sequence[Any]], *, size: int, seed: int, skip: int = 0) -> Iterator[list[PooledKey]]:
    """Pass batches of keys through a pool.

    Until the pool is full, batches pass unchanged and are added to it. After that, each new batch shuffles the pool,
    the first keys leave it, and the new batch takes their places.

    Args:
        batches: lists of :class:`safmn.data.SampleKey`, starting with the run's first batch, all of the same length.
        size: number of keys in the pool, a multiple of the batch's length.
        seed: the run's seed.
        skip: number of result batches to skip when resuming. Skipping 100,000 takes about two seconds.
    """
    return islice(_exchange(batches, size, seed), skip, None)


def _exchange(batches: Iterator[Sequence[Any]], size: int, seed: int) -> Iterator[list[PooledKey]]:
    pool: list[PooledKey] = []
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=_POOL_STREAM)))
    for keys in batches:
        named = [PooledKey(key.epoch, key.index, keys[0].epoch, keys[0].index) for key in keys]
        if len(pool) < size:
            pool += named
            yield named
            continue
        pool = [pool[place] for place in rng.permutation(size).tolist()]
        leaving, pool[: len(named)] = pool[: len(named)], named
        yield leaving
