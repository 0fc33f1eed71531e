"""Random states as a function of (seed, iteration, rank), so that resuming needs none of them saved."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int, *position: int) -> None:
    """Seed Python's, NumPy's and torch's global generators from ``seed`` and a position (iteration, rank, ...).

    Whatever a network draws in a step (dropout, stochastic depth) then depends on the step, not on what came before it.
    """
    words = np.random.SeedSequence([seed, *position]).generate_state(4, dtype=np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed((int(words[2]) << 32) | int(words[3]))
