"""Sample keys and their random draws, which are a function of (seed, epoch, index) and of no earlier draw.

Therefore a run can resume at any iteration, and its batches are the same for any number of loader workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from safmn.data.batch_draws import DRAWS
from safmn.data.collating import SOURCE, collated
from safmn.data.stages import cut_patches
from safmn.errors import UserError
from safmn.own_code import defined_at
from safmn.runtime.random_state import global_generators

Sample = dict[str, Any]
Batch = dict[str, Any]


class SampleKey(NamedTuple):
    """The key of one sample of a training run.

    ``index`` is an index into the *enlarged* data set (``dataset_enlarge_ratio``); the image is
    ``index % len(dataset)``. So an image that appears several times in an epoch gets a different crop each time.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used here


class Patch(NamedTuple):
    """Position of a crop (in LQ pixels) and how to augment it: first the flips, then the transposition."""

    top: int
    left: int
    hflip: bool
    vflip: bool
    rot90: bool


def sample_rng(seed: int, key: SampleKey) -> np.random.Generator:
    """Return the generator for all draws of this sample (counter-based; takes about 10 microseconds to create)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, key.epoch, key.index])))


class Patches(NamedTuple):
    """The :class:`Patch` of each sample of a batch, as arrays of shape (n,)."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    hflip: NDArray[np.bool_]
    vflip: NDArray[np.bool_]
    rot90: NDArray[np.bool_]


def patches_of(draws: NDArray[np.float64], lq_h: Any, lq_w: Any, lq_patch: int, hflip: bool, rot: bool) -> Patches:
    """Turn draws into crops with the distribution of BasicSR: uniform position, each augmentation with probability 1/2.

    A crop always takes three draws, so its position does not depend on the allowed augmentations. Folders, lmdbs and
    patch stores all use this function, so the same key gives the same crop from each of them.

    Args:
        draws: (n, 3), in [0, 1).
        lq_h, lq_w: height and width of the LQ images, (n,) or one number for all, at least ``lq_patch``.
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
    """Draw one patch; the arguments are those of :func:`patches_of`."""
    patches = patches_of(rng.random((1, DRAWS)), lq_h, lq_w, lq_patch, hflip, rot)
    top, left, *turns = (values.item() for values in patches)
    return Patch(top, left, *map(bool, turns))


class KeyedDataset:
    """Wraps a map-style data set so that its samples are a function of :class:`SampleKey`.

    SAFMN's data sets provide ``sample(index, rng)``, or ``batch(keys, seed)`` for a whole batch. For all others
    (BasicSR's, a user's), the global generators of python, numpy and torch are seeded from the key for the call of
    ``dataset[index]``.

    Args:
        dataset: has ``__len__`` and one of ``batch``, ``sample``, ``__getitem__``.
        seed: the run's seed (``manual_seed``), not negative.
        augmenter: changes the images of a batch; see :class:`safmn.data.augmentations.Augmenter`.
        gt_size: side that the GT patches must have; larger ones are cut. None: as the data set gives them.
    """

    def __init__(self, dataset: Any, seed: int, augmenter: Any = None, *, gt_size: int | None = None) -> None:
        self.dataset = dataset
        self.seed = seed
        self.augmenter = augmenter
        self.gt_size = gt_size
        self.length = len(dataset)
        place = defined_at(dataset)
        self._source = f"the training set {type(dataset).__name__}{place}" if place else ""

    @property
    def is_pure(self) -> bool:
        """Whether samples can be drawn without the global generators, so that any thread may draw them."""
        return hasattr(self.dataset, "sample") or hasattr(self.dataset, "batch")

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the sample of ``key``."""
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
            raise  # these name the file already
        except Exception as error:
            notes = [*getattr(error, "__notes__", []), self._name(index)]
            error.__notes__ = notes  # type: ignore[attr-defined]  # add_note, which Python 3.10 does not have
            raise

    def _name(self, index: int) -> str:
        """Return a note that names the sample, and its image if the data set has ``image_names``."""
        names = self.dataset.image_names() if hasattr(self.dataset, "image_names") else None
        return f"while loading sample {index} of {type(self.dataset).__name__}" + (f", {names[index]}" if names else "")

    def batch(self, keys: Sequence[SampleKey]) -> Batch:
        """Return the samples of ``keys``, stacked (tensors) or listed (all else), and the list ``keys`` itself."""
        batch = self._plain(keys)
        if self.augmenter is not None:
            batch = self.augmenter(batch, keys, self.seed, self.length, self._plain)
        batch["keys"] = list(keys)
        if self._source:
            batch[SOURCE] = self._source
        return batch

    def _plain(self, keys: Sequence[SampleKey]) -> Batch:
        """Return the samples without augmentations."""
        if hasattr(self.dataset, "batch"):
            batch: Batch = self.dataset.batch(keys, self.seed)
        else:
            batch = collated([self[key] for key in keys], type(self.dataset).__name__)
        return batch if self.gt_size is None else cut_patches(batch, keys, self.seed, self.gt_size)
