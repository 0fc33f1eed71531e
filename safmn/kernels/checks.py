"""What the native kernels for training are for."""

from __future__ import annotations

from torch import Tensor, nn

from safmn.archs import SAFMN
from safmn.errors import OptionError

_WINDOW = 8  # LR pixels; of the coarsest pooling


def check_network(network: nn.Module) -> None:
    """That it is SAFMN itself, not a subclass, which may have another forward.

    Raises:
        OptionError: it is not.
    """
    if type(network) is not SAFMN:
        raise OptionError(
            f"train.kernels: native has kernels for SAFMN alone, not for {type(network).__name__}; leave it out"
        )


def check_sides(images: Tensor) -> None:
    """That the sides of images (B, 3, h, w) are multiples of 8.

    Raises:
        OptionError: one is not.
    """
    height, width = images.shape[2:]
    if height % _WINDOW or width % _WINDOW:
        raise OptionError(
            f"train.kernels: native needs LR patches whose sides are multiples of {_WINDOW}, not {width}x{height}: "
            f"choose a gt_size that is a multiple of {_WINDOW} * scale, or leave it out"
        )
