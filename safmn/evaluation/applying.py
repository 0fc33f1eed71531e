"""Apply a network to whole images for validation and tests: padded to windows, in tiles, with self-ensemble."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.probing import ProbingError, WindowFinder, stated_halo, traits_of, with_rgb
from safmn.errors import DataError

logger = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Applying:
    """How a network is applied to a batch of images; see the keys of the same names in ``val``.

    Attributes:
        tile: side of the tiles in LQ pixels; None: whole images.
        tile_overlap: context around each tile in LQ pixels, for a network without a known halo.
        window: images are padded to multiples of this; None: of the network's own windows.
        self_ensemble: average over the eight flips and rotations (Timofte et al., CVPR 2016).
        halo: the context that makes tiles exact, in LQ pixels, if it was found by trying (:func:`fitted`); None: what
            the network states, or else ``tile_overlap``.
    """

    tile: int | None = None
    tile_overlap: int = 32
    window: int | None = None
    self_ensemble: bool = False
    halo: int | None = None

    def __call__(self, network: Network, lq: Tensor) -> Tensor:
        """Return the network's output (B, C', h * scale, w * scale) for ``lq`` (B, C, h, w) in [0, 1].

        Raises:
            DataError: a tile's output is not a whole multiple of its input.
        """
        return self._ensemble(network, lq) if self.self_ensemble else self._tiled(network, lq)

    def _ensemble(self, network: Network, lq: Tensor) -> Tensor:
        total: Tensor | None = None
        for turns in range(4):
            for flip in (False, True):
                turned = torch.rot90(lq, turns, (2, 3))
                output = self._tiled(network, turned.flip(3) if flip else turned).float()
                output = torch.rot90(output.flip(3) if flip else output, -turns, (2, 3))
                total = output if total is None else total + output
        assert total is not None
        return total / 8

    def _tiled(self, network: Network, lq: Tensor) -> Tensor:
        """Return the output of the whole image, padded to whole windows, from tiles with context around them."""
        height, width = lq.shape[-2:]
        if self.tile is None or max(height, width) <= self.tile:
            return in_whole_windows(network, lq, self.window)
        window = self.window or window_of(network)
        halo = stated_halo(network) if self.halo is None else self.halo
        context = _aligned(self.tile_overlap if halo is None else halo, window)
        side = _aligned(self.tile, window)
        padded = _padded(lq, -height % window, -width % window)
        rows, columns = padded.shape[-2:]
        result: Tensor | None = None
        scale = 1
        for top in range(0, rows, side):
            for left in range(0, columns, side):
                y0, x0 = max(top - context, 0), max(left - context, 0)
                piece = padded[..., y0 : min(top + side + context, rows), x0 : min(left + side + context, columns)]
                output = network(piece)
                scale = _scale(output, piece)
                if result is None:
                    result = output.new_empty(*output.shape[:2], rows * scale, columns * scale)
                place = result[..., top * scale : (top + side) * scale, left * scale : (left + side) * scale]
                inside = output[..., (top - y0) * scale :, (left - x0) * scale :]
                place.copy_(inside[..., : place.shape[-2], : place.shape[-1]])
        assert result is not None
        return result[..., : height * scale, : width * scale]


WHOLE = Applying()
"""Whole images, without self-ensemble."""


def applying_of(section: Any, *, self_ensemble: bool | None = None) -> Applying:
    """Return what a ``val`` section asks for; ``self_ensemble`` replaces the section's."""
    wanted = section.self_ensemble if self_ensemble is None else self_ensemble
    return Applying(section.tile, section.tile_overlap, section.window, wanted)


def fitted(applying: Applying, network: object) -> Applying:
    """Return ``applying`` with the halo of this network, found by trying if tiles need it and the network states none.

    If tiles change the result, or if nothing can be found out, there is a warning.

    Args:
        applying: how the network is applied.
        network: with its weights, on its device.
    """
    if applying.tile is None or stated_halo(network) is not None:
        return applying
    name, traits = type(network).__name__, None
    if isinstance(network, nn.Module) and getattr(network, "halo", True) is not None:  # None: it states to have none
        try:
            traits = traits_of(network)
        except ProbingError:
            with contextlib.suppress(ProbingError):
                traits = traits_of(with_rgb(network) or network)
    if traits is None or traits.halo is None:
        logger.warning(
            "val.tile: a pixel of %s may depend on the whole image, so tiles with %d pixels of context may differ from "
            "whole images",
            name,
            applying.tile_overlap,
        )
        return applying
    logger.info("%s: %s (found by trying)", name, traits)
    window = applying.window or max(window_of(network), traits.window)
    return replace(applying, halo=traits.halo, window=window if window > 1 else None)


def window_of(network: object) -> int:
    """Return the number of which an image's sides must be multiples: the network's ``window``, or its layers' windows.

    Layers name it ``window_size``, as in SwinIR and HAT: a number, or one for each direction. Networks with an
    attribute ``window``, such as those of SAFMN, take any size; tiles still start at its multiples.
    """
    stated = getattr(network, "window", None)
    if isinstance(stated, int):
        return stated
    if not isinstance(network, nn.Module):
        return 1
    found: set[int] = set()
    for layer in network.modules():
        size = getattr(layer, "window_size", None)
        sizes = size if isinstance(size, (list, tuple)) else [size]
        found |= {side for side in sizes if isinstance(side, int) and not isinstance(side, bool) and side > 0}
    return max(found, default=1)


_finders: WeakKeyDictionary[nn.Module, WindowFinder] = WeakKeyDictionary()


def in_whole_windows(network: Network, lq: Tensor, window: int | None = None) -> Tensor:
    """Return ``network(lq)``; pad ``lq`` if the network has window layers (SwinIR, HAT) that do not fit its size.

    As in BasicSR's ``SwinIRModel``, the input is padded by reflection at the right and at the bottom, and the output is
    cropped. Networks with an attribute ``window``, such as those of SAFMN, take any size and get no padding. If another
    network refuses an image, its window is found by trying padded sizes (:class:`safmn.archs.probing.WindowFinder`).

    Args:
        network: maps (B, C, h, w) to (B, C, h * scale, w * scale).
        lq: (B, C, h, w).
        window: pad to multiples of this, whatever the network is.
    """
    if window is None:
        window = 1 if hasattr(network, "window") else window_of(network)
        if window == 1 and isinstance(network, nn.Module) and not hasattr(network, "window"):
            return _finders.setdefault(network, WindowFinder())(network, lq)
    height, width = lq.shape[-2:]
    down, across = -height % window, -width % window
    if not (down or across):
        return network(lq)
    padded = _padded(lq, down, across)
    output = network(padded)
    scale = _scale(output, padded)
    return output[..., : height * scale, : width * scale]


def _padded(lq: Tensor, down: int, across: int) -> Tensor:
    """Mirror ``lq`` at the bottom and at the right; images smaller than the padding are mirrored repeatedly."""
    while down or across:
        height, width = lq.shape[-2:]
        rows, columns = min(down, height - 1), min(across, width - 1)
        if (down and not rows) or (across and not columns):  # one pixel has no mirror image
            return functional.pad(lq, (0, across, 0, down), mode="replicate")
        lq = functional.pad(lq, (0, columns, 0, rows), mode="reflect")
        down, across = down - rows, across - columns
    return lq


def _scale(output: Tensor, lq: Tensor) -> int:
    scale, rest = divmod(output.shape[-1], lq.shape[-1])
    if rest or output.shape[-2] != lq.shape[-2] * scale:
        raise DataError(
            f"the network gives {tuple(output.shape)} for an input of {tuple(lq.shape)} (images, channels, height, "
            "width), which is no whole scale"
        )
    return scale


def _aligned(value: int, window: int) -> int:
    return math.ceil(value / window) * window
