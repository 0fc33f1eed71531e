"""A network as a chain of stages, each of which sees only a few rows: what streaming (:mod:`safmn.inference.streaming`)
runs one after the other.

A tile of the whole network needs a halo of 130 (SAFMN) or 258 pixels (SAFMN-L). Taken apart, one half of a block needs
8 rows and the other half 1, so that bands of rows can pass through all stages with next to no arithmetic done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from torch import Tensor, nn

from safmn.archs import SAFMN, SAFMN_BCIE, SAFMNPP, LightSAFMNPP
from safmn.archs.blocks import FMM, FeedForward, SimpleSAFM, enlarge
from safmn.archs.receptive import Conv, PooledConv, Step


@dataclass(frozen=True)
class Stage:
    """A part of a network that maps rows to rows.

    Attributes:
        run: (B, channels, h, w) to (B, C', h * up / down, w * up / down).
        channels: of its input.
        halo: how many rows (and columns) beyond a range of outputs that begins and ends at multiples of ``window`` it
            depends on, in pixels of its input.
        window: its input begins at a multiple of this, and is as high as a multiple of it.
        up: enlargement.
        down: reduction.
    """

    run: Callable[[Tensor], Tensor]
    channels: int
    halo: int
    window: int = 1
    up: int = 1
    down: int = 1


@dataclass(frozen=True)
class Skip:
    """``inner(x) + shortcut(x)``. The shortcut enlarges as much as ``inner`` does, and sees no further."""

    inner: Chain
    shortcut: Stage


Chain: TypeAlias = "tuple[Stage | Skip, ...]"


class StageModule(nn.Module):
    """A stage as a network of its own, for the back ends.

    Attributes:
        in_channels: channels of its input, (B, in_channels, h, w).
        window: sides of its input are multiples of this.
    """

    def __init__(self, in_channels: int, window: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.window = window


class Plain(StageModule):
    """A module as it is, (B, in_channels, h, w) to what it makes of that."""

    def __init__(self, module: nn.Module, in_channels: int, window: int = 1) -> None:
        super().__init__(in_channels, window)
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Run the module."""
        y: Tensor = self.module(x)
        return y


class NormedSkip(StageModule):
    """``module(norm(x)) + x``: either half of a feature mixing module."""

    def __init__(self, norm: nn.Module, module: nn.Module, in_channels: int, window: int = 1) -> None:
        super().__init__(in_channels, window)
        self.norm = norm
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to the same shape."""
        y: Tensor = self.module(self.norm(x)) + x
        return y


class Modulation(StageModule):
    """:class:`SimpleSAFM` without its first convolution."""

    def __init__(self, block: SimpleSAFM) -> None:
        super().__init__(block.proj.out_channels, SimpleSAFM.window)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to the same shape."""
        return self.block.modulate(x)


def _stage(module: StageModule, steps: Sequence[Step], up: int = 1) -> Stage:
    return Stage(module, module.in_channels, halo=_reach(steps, module.window), window=module.window, up=up)


def _skip(inner: Chain, channels: int) -> Skip:
    return Skip(inner, Stage(lambda x: x, channels, halo=0))


def _reach(steps: Sequence[Step], window: int) -> int:
    """The halo of ranges on multiples of ``window``: 8 for pooling by 8 and a 3x3, though single pixels see 15."""
    lowest = 0
    for pixel in range(window):
        for step in reversed(steps):
            pixel = step.first(pixel)
        lowest = min(lowest, pixel)
    return -lowest


def _fmm(block: FMM) -> Chain:
    dim = block.safm.aggr.in_channels
    return (
        _stage(NormedSkip(block.norm1, block.safm, dim, FMM.window), [PooledConv(FMM.window)]),
        _stage(NormedSkip(block.norm2, block.ccm, dim), [Conv()]),
    )


def _simple_safm(block: SimpleSAFM) -> Chain:
    return _conv(block.proj), _stage(Modulation(block), SimpleSAFM.steps[1:])


def _feed_forward(block: FeedForward) -> Stage:
    return _stage(Plain(block, block.conv1.in_channels), [Conv(block.conv1.kernel_size[0] // 2)])


def _mixer(layers: nn.Sequential) -> Stage:
    first = cast(nn.Conv2d, layers[0])
    return _stage(Plain(layers, first.in_channels), [Conv(first.kernel_size[0] // 2)])


def _conv(conv: nn.Conv2d) -> Stage:
    return _stage(Plain(conv, conv.in_channels), [Conv(conv.kernel_size[0] // 2)])


def _to_image(to_img: nn.Sequential, dim: int, scale: int) -> Stage:
    return _stage(Plain(to_img, dim), [Conv()], up=scale)


def _safmn(network: Any) -> Chain:
    blocks = tuple(stage for block in network.feats for stage in _fmm(block))
    dim = network.to_feat.out_channels
    return (_conv(network.to_feat), _skip(blocks, dim), _to_image(network.to_img, dim, network.scale))


def _bcie(network: Any) -> Chain:
    unshuffle, conv = network.to_feat
    factor = unshuffle.downscale_factor
    dim = conv.out_channels
    groups = tuple(
        _skip((*(stage for block in group.layers for stage in _fmm(block)), _conv(group.conv)), dim)
        for group in network.feats
    )
    shuffled = network.to_img[:2]  # convolution and pixel shuffle
    return (
        Stage(unshuffle, 3, halo=0, window=factor, down=factor),
        _conv(conv),
        _skip(groups, dim),
        _to_image(shuffled, dim, factor),
        _conv(network.to_img[2]),
    )


def _safmnpp(network: Any) -> Chain:
    dim, scale = network.to_feat.out_channels, network.scale
    blocks = tuple(_skip((*_simple_safm(block.conv1), _feed_forward(block.conv2)), dim) for block in network.feats)
    enlarged = Stage(lambda x: enlarge(x, scale), 3, halo=1, up=scale)
    return (Skip((_conv(network.to_feat), *blocks, _to_image(network.to_img, dim, scale)), enlarged),)


def _light_safmnpp(network: Any) -> Chain:
    dim = network.to_feat.out_channels
    blocks = tuple(stage for block in network.feats for stage in (*_simple_safm(block.conv1), _mixer(block.conv2.conv)))
    return (_conv(network.to_feat), _skip(blocks, dim), _to_image(network.to_img, dim, network.scale))


_DECOMPOSITIONS: dict[type[nn.Module], Callable[[Any], Chain]] = {
    SAFMN: _safmn,
    SAFMN_BCIE: _bcie,
    SAFMNPP: _safmnpp,
    LightSAFMNPP: _light_safmnpp,
}


def stages_of(network: nn.Module) -> Chain | None:
    """The chain that computes what the network does, but for the order of sums.

    None for a network that nobody has taken apart, or that sees the whole frame and so cannot be. A subclass may have
    another forward, and counts as another network.
    """
    decompose = _DECOMPOSITIONS.get(type(network))
    return None if decompose is None else decompose(network)


def map_modules(chain: Chain, build: Callable[[StageModule], Callable[[Tensor], Tensor]]) -> Chain:
    """The same chain with every :class:`StageModule` run by what ``build`` makes of it."""
    return tuple(_mapped(part, build) for part in chain)


def _mapped(part: Stage | Skip, build: Callable[[StageModule], Callable[[Tensor], Tensor]]) -> Stage | Skip:
    if isinstance(part, Skip):
        return Skip(map_modules(part.inner, build), part.shortcut)
    return replace(part, run=build(part.run)) if isinstance(part.run, StageModule) else part
