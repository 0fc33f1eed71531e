"""Which sample, and its randomness: a function of (seed, epoch, index), never of what was drawn before.

This is what makes a run resumable at any iteration and its batches the same for any number of loader workers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

Sample = dict[str, Any]
Batch = dict[str, Any]


class SampleKey(NamedTuple):
    """One sample of a training run.

    ``index`` counts the *enlarged* data set (``dataset_enlarge_ratio``): the image is ``index % len(dataset)``, so that
    each of an image's appearances in an epoch gets a crop of its own.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class Patch(NamedTuple):
    """Where to cut (in LQ pixels) and how to turn what was cut: first the flips, then the transposition."""

    top: int
    left: int
    hflip: bool
    vflip: bool
    rot90: bool


def sample_rng(seed: int, key: SampleKey) -> np.random.Generator:
    """The generator that every draw for this sample comes from (counter-based, about 10 microseconds to make)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, key.epoch, key.index])))


def draw_patch(rng: np.random.Generator, lq_h: int, lq_w: int, lq_patch: int, hflip: bool, rot: bool) -> Patch:
    """Draw crop position and flips as BasicSR does: uniform position, each of the three turns with probability 1/2.

    Always three draws, so that the position does not depend on which turns are allowed. Every data set of ours draws
    through this function: the same key gives the same crop from a folder, an lmdb and a patch store.

    Args:
        lq_h, lq_w: size of the LQ image, at least ``lq_patch``.
        lq_patch: side of the square LQ crop.
        hflip: allow the horizontal flip.
        rot: allow the vertical flip and the transposition (together: rotations).
    """
    down, across, turns = rng.random(3).tolist()
    bits = int(turns * 8)
    return Patch(
        top=int(down * (lq_h - lq_patch + 1)),
        left=int(across * (lq_w - lq_patch + 1)),
        hflip=hflip and bool(bits & 1),
        vflip=rot and bool(bits & 2),
        rot90=rot and bool(bits & 4),
    )


@contextmanager
def _global_generators(rng: np.random.Generator) -> Iterator[None]:
    """Seed the generators of python, numpy and torch (CPU) from ``rng``; put their states back afterwards."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seeds = rng.integers(2**32, size=3).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)


class KeyedDataset:
    """Makes any map-style data set a function of :class:`SampleKey`.

    Ours provide ``sample(index, rng)``, or ``batch(keys, seed)`` for a whole batch at once. For any other (BasicSR's, a
    user's), the global generators of python, numpy and torch are seeded from the key around ``dataset[index]``.

    Args:
        dataset: has ``__len__`` and one of ``batch``, ``sample``, ``__getitem__``.
        seed: the run's seed (``manual_seed``), not negative.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.length = len(dataset)

    @property
    def is_pure(self) -> bool:
        """Whether drawing a sample leaves the global generators alone, so that any thread may do it."""
        return hasattr(self.dataset, "sample") or hasattr(self.dataset, "batch")

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of ``key``."""
        rng = sample_rng(self.seed, key)
        index = key.index % self.length
        if hasattr(self.dataset, "sample"):
            sample: Sample = self.dataset.sample(index, rng)
            return sample
        with _global_generators(rng):
            sample = self.dataset[index]
        return sample

    def batch(self, keys: Sequence[SampleKey]) -> Batch:
        """The samples of ``keys`` stacked (tensors) or listed (the rest), with the keys themselves as ``keys``."""
        if hasattr(self.dataset, "batch"):
            batch: Batch = self.dataset.batch(keys, self.seed)
        else:
            batch = default_collate([self[key] for key in keys])
        batch["keys"] = list(keys)
        return batch
