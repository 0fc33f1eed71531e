"""Compute the random draws of a whole batch at once, equal to those of one generator per sample.

At a hundred batches a second, creating a generator for each sample takes longer than all other host work of a training
step. This module vectorizes two algorithms of numpy: ``SeedSequence`` (M. O'Neill's seed_seq, with its constants) and
the first block of ``Philox`` (4x64, ten rounds; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Longs = NDArray[np.uint64]

DRAWS = 3  # per sample; one block of Philox gives four numbers
_POOL = 4  # words in the pool of a SeedSequence
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_PHILOX = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10
_HALF = np.uint32(16)


class _Hash:
    """The hash function of SeedSequence; its constant changes with each word."""

    def __init__(self, start: int, factor: int) -> None:
        self.constant, self.factor = start, factor

    def __call__(self, words: Words) -> Words:
        words = words ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor & 0xFFFFFFFF
        words = words * np.uint32(self.constant)
        return words ^ (words >> _HALF)


def _mixed(left: Words, right: Words) -> Words:
    result = left * _MIX_LEFT - right * _MIX_RIGHT
    return result ^ (result >> _HALF)


def _seed_words(entropy: Words) -> Longs:
    """Return ``SeedSequence(row).generate_state(2, uint64)`` for each row of at most four words: (n, 2)."""
    digest = _Hash(_INIT_A, _MULT_A)
    padded = np.zeros((len(entropy), _POOL), np.uint32)
    padded[:, : entropy.shape[1]] = entropy
    pool = [digest(padded[:, word]) for word in range(_POOL)]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mixed(pool[target], digest(pool[source]))
    digest = _Hash(_INIT_B, _MULT_B)
    state = [digest(pool[word]).astype(np.uint64) for word in range(4)]
    return np.stack([state[0] | state[1] << np.uint64(32), state[2] | state[3] << np.uint64(32)], axis=1)


def _product(left: Longs, right: np.uint64) -> tuple[Longs, Longs]:
    """Return the high and the low 64 bits of the product."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    low_left, high_left, low_right, high_right = left & mask, left >> half, right & mask, right >> half
    middle = high_left * low_right + (low_left * low_right >> half)
    carry = low_left * high_right + (middle & mask)
    return high_left * high_right + (middle >> half) + (carry >> half), left * right


def _philox(keys: Longs) -> list[Longs]:
    """Return the first four numbers of Philox for each key (n, 2).

    They are block 1, not 0, because numpy increments the counter before it computes a block.
    """
    key0, key1 = keys[:, 0], keys[:, 1]
    zero = np.zeros_like(key0)
    block = [zero + np.uint64(1), zero, zero, zero]
    for number in range(_ROUNDS):
        if number:
            key0, key1 = key0 + np.uint64(_WEYL[0]), key1 + np.uint64(_WEYL[1])
        high0, low0 = _product(block[0], _PHILOX[0])
        high1, low1 = _product(block[2], _PHILOX[1])
        block = [high1 ^ block[1] ^ key0, low1, high0 ^ block[3] ^ key1, low0]
    return block


def first_draws(entropy: Sequence[tuple[int, int, int]]) -> NDArray[np.float64]:
    """Return ``Generator(Philox(SeedSequence(row))).random(3)`` for each row: (n, 3) in [0, 1).

    Args:
        entropy: rows of (seed, epoch, index), not negative.
    """
    rows = np.array(entropy, np.uint64).reshape(-1, DRAWS)
    if (rows >> np.uint64(32)).any():  # SeedSequence splits such a number into two words
        generators = (np.random.Generator(np.random.Philox(np.random.SeedSequence(row.tolist()))) for row in rows)
        return np.array([generator.random(DRAWS) for generator in generators])
    numbers = _philox(_seed_words(rows.astype(np.uint32)))[:DRAWS]
    return np.stack([(number >> np.uint64(11)) * 2.0**-53 for number in numbers], axis=1)
