"""Checks that the native training kernels support a network and its images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from safmn.archs import SAFMN
from safmn.errors import OptionError

WINDOW = 8
"""LR pixels: the window of the coarsest pooling."""


def check_network(network: nn.Module) -> None:
    """Check that the network is exactly SAFMN. A subclass may have a different forward.

    Raises:
        OptionError: it is another network.
    """
    if type(network) is not SAFMN:
        raise OptionError(f"train.kernels: native supports only SAFMN, not {type(network).__name__}; remove this key")


def check_sides(images: Tensor) -> None:
    """Check that the sides of images (B, 3, h, w) are multiples of 8.

    Raises:
        OptionError: a side is not.
    """
    height, width = images.shape[2:]
    if height % WINDOW or width % WINDOW:
        raise OptionError(
            f"train.kernels: native needs LR patches whose sides are multiples of {WINDOW}, not {width}x{height}: "
            f"choose a gt_size that is a multiple of {WINDOW} * scale, or remove this key"
        )


@torch.enable_grad()
def relative_error(
    wanted: Callable[[Tensor], Tensor], got: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]
) -> float:
    """Return how far two forms of a network differ on random images, as a ratio of norms; infinite for NaN and Inf.

    Args:
        wanted, got: map (B, 3, 24, 16) to images, and depend on ``parameters``.
        parameters: require gradients. The result is the larger error of the output and of their gradients.
    """
    images = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(0)).to(parameters[0].device)
    results = []
    for forward in (wanted, got):
        output = forward(images)
        gradients = torch.autograd.grad(output.square().mean(), parameters)
        results.append((output.detach().flatten(), torch.cat([gradient.flatten() for gradient in gradients])))
    misses = [float((b - a).norm() / a.norm()) for a, b in zip(*results, strict=True)]
    return max(misses) if all(map(math.isfinite, misses)) else math.inf
