"""The published pool of training pairs (BasicSR's ``queue_size``), as an order of keys instead of a store of images.

BasicSR draws much of the degradation once for a batch. To mix it, every batch is swapped with as many pairs drawn from
a pool of earlier ones. What leaves the pool is what went in, so it is enough to pool the *keys*: a pair is made when it
leaves. The pool then costs no memory, and its state at any iteration follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

_POOL_STREAM = (0x9001,)  # keeps the pool's draws apart from those of orders and samples


class PooledKey(NamedTuple):
    """A sample's key, and that of the first sample of the batch it was drawn with, which names that batch."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, as in SampleKey
    batch_epoch: int
    batch_index: int


def pooled(batches: Iterator[Sequence[Any]], *, size: int, seed: int, skip: int = 0) -> Iterator[list[PooledKey]]:
    """Pass batches of keys through a pool.

    Until the pool is full, batches pass unchanged and are remembered. From then on the pool is shuffled, its first keys
    are given out, and the new batch takes their places.

    Args:
        batches: lists of :class:`safmn.data.SampleKey`, from the first batch of the run on, all of one length.
        size: keys in the pool, a multiple of the batch's length.
        seed: the run's seed.
        skip: batches of the result to leave out, to resume after so many. 100,000 take about two seconds.
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
