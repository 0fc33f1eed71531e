"""Which sample, and its randomness: a function of (seed, epoch, index), never of what was drawn before.

This is what makes a run resumable at any iteration and its batches the same for any number of loader workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import default_collate

from safmn.data.batch_draws import DRAWS
from safmn.errors import UserError
from safmn.runtime.random_state import global_generators

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


class Patches(NamedTuple):
    """A :class:`Patch` for each sample of a batch: (n,) each, int64 and bool."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    hflip: NDArray[np.bool_]
    vflip: NDArray[np.bool_]
    rot90: NDArray[np.bool_]


def patches_of(draws: NDArray[np.float64], lq_h: Any, lq_w: Any, lq_patch: int, hflip: bool, rot: bool) -> Patches:
    """Crop positions and flips as BasicSR draws them: uniform position, each of the three turns with probability 1/2.

    Always three draws, so that the position does not depend on which turns are allowed. Every data set of ours draws
    through this function: the same key gives the same crop from a folder, an lmdb and a patch store.

    Args:
        draws: (n, 3), in [0, 1).
        lq_h, lq_w: sizes of the LQ images, (n,) or one for all, at least ``lq_patch``.
        lq_patch: side of the square LQ crop.
        hflip: allow the horizontal flip.
        rot: allow the vertical flip and the transposition (together: rotations).
    """
    down, across, turns = draws.T
    bits = (turns * 8).astype(np.int64)
    return Patches(
        top=(down * (lq_h - lq_patch + 1)).astype(np.int64),
        left=(across * (lq_w - lq_patch + 1)).astype(np.int64),
        hflip=(bits & 1 > 0) & hflip,
        vflip=(bits & 2 > 0) & rot,
        rot90=(bits & 4 > 0) & rot,
    )


def draw_patch(rng: np.random.Generator, lq_h: int, lq_w: int, lq_patch: int, hflip: bool, rot: bool) -> Patch:
    """Draw one; arguments as those of :func:`patches_of`."""
    patches = patches_of(rng.random((1, DRAWS)), lq_h, lq_w, lq_patch, hflip, rot)
    top, left, *turns = (values.item() for values in patches)
    return Patch(top, left, *map(bool, turns))


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
        try:
            if hasattr(self.dataset, "sample"):
                sample: Sample = self.dataset.sample(index, rng)
                return sample
            with global_generators(rng):
                sample = self.dataset[index]
            return sample
        except (UserError, OSError):
            raise  # they name the file
        except Exception as error:
            notes = [*getattr(error, "__notes__", []), self._name(index)]
            error.__notes__ = notes  # type: ignore[attr-defined]  # add_note, which Python 3.10 does not have
            raise

    def _name(self, index: int) -> str:
        """Which sample: the name of its image, where the data set tells names."""
        names = self.dataset.image_names() if hasattr(self.dataset, "image_names") else None
        return f"while loading sample {index} of {type(self.dataset).__name__}" + (f", {names[index]}" if names else "")

    def batch(self, keys: Sequence[SampleKey]) -> Batch:
        """The samples of ``keys`` stacked (tensors) or listed (the rest), with the keys themselves as ``keys``."""
        if hasattr(self.dataset, "batch"):
            batch: Batch = self.dataset.batch(keys, self.seed)
        else:
            batch = default_collate([self[key] for key in keys])
        batch["keys"] = list(keys)
        return batch
