"""What the early networks, which work on the Y channel, have in common."""

from __future__ import annotations

from typing import Literal

from safmn.errors import OptionError


def y_or_rgb(num_channels: int) -> Literal["Y", "RGB"]:
    """Return the name of an image's channels, for :class:`safmn.archs.peers.Form`.

    Raises:
        OptionError: their number is neither 1 nor 3.
    """
    if num_channels not in (1, 3):
        raise OptionError(f"num_channels is {num_channels}, but an image has 1 (Y) or 3 (RGB)")
    return "Y" if num_channels == 1 else "RGB"
