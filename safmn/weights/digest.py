"""Digests of networks: equal if and only if the networks compute the same."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn


def network_digest(network: nn.Module) -> str:
    """Return a hash of a network: its modules, the files that define them, and its weights.

    Raises:
        RuntimeError, TypeError, NotImplementedError: the network has tensors without plain values, such as sparse ones.
    """
    digest = hashlib.sha256(str(network).encode())
    for content in _defining_files({type(module).__module__ for module in network.modules()}):
        digest.update(content)
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _defining_files(modules: Iterable[str]) -> Iterable[bytes]:
    """Yield the contents of the files of modules, without those of torch, which has a version."""
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and not name.startswith("torch."):
            try:
                yield Path(file).read_bytes()
            except OSError:  # an archive, or a file that is no longer there
                yield name.encode()
