"""Random states as functions of a seed and a position, so that resuming needs no saved random state."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_everything(seed: int, *position: int) -> None:
    """Seed the global generators of Python, NumPy and torch from ``seed`` and a position (iteration, rank, ...).

    Random numbers that a network draws in a step (dropout, stochastic depth) then depend only on the step, not on
    earlier steps.
    """
    words = np.random.SeedSequence([seed, *position]).generate_state(4, dtype=np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed((int(words[2]) << 32) | int(words[3]))


def named_rng(seed: int, *position: str | int) -> np.random.Generator:
    """Return the generator for a seed and a position: names and numbers, such as a data set and an image's index."""
    words = [part if isinstance(part, int) else _number_of(part) for part in position]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words])))


def _number_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "little")


@contextlib.contextmanager
def global_generators(rng: np.random.Generator, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch from ``rng``; restore their states after the block.

    Args:
        rng: the source of the seeds.
        device: a GPU whose generator is also seeded and restored.
    """
    gpu = device if device is not None and device.type in ("cuda", "xpu", "mps") else None
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    gpu_state = None if gpu is None else torch.get_device_module(gpu).get_rng_state(*_number(gpu))
    seeds = rng.integers(2**32, size=3).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])
    if gpu is not None:
        _seed_gpu(gpu, seeds[2])
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)
        if gpu is not None and gpu_state is not None:
            torch.get_device_module(gpu).set_rng_state(gpu_state, *_number(gpu))


def _number(gpu: torch.device) -> tuple[torch.device, ...]:
    """The device as an argument of torch's functions for its kind; there is one MPS device, and they take none."""
    return () if gpu.type == "mps" else (gpu,)


def _seed_gpu(gpu: torch.device, seed: int) -> None:
    module = torch.get_device_module(gpu)
    with contextlib.nullcontext() if gpu.type == "mps" else module.device(gpu):
        module.manual_seed(seed)
