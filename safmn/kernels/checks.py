"""Checks that the native training kernels support a network and its images."""

from __future__ import annotations

from torch import Tensor, nn

from safmn.archs import SAFMN
from safmn.errors import OptionError

_WINDOW = 8  # LR pixels: the window of the coarsest pooling


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
    if height % _WINDOW or width % _WINDOW:
        raise OptionError(
            f"train.kernels: native needs LR patches whose sides are multiples of {_WINDOW}, not {width}x{height}: "
            f"choose a gt_size that is a multiple of {_WINDOW} * scale, or remove this key"
        )
