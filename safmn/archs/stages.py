"""A network as a chain of stages, each of which sees only a few rows.

:mod:`safmn.inference.streaming` runs the stages one after the other, a band of rows at a time. A tile of the whole
network needs a halo of 130 pixels (SAFMN) or 258 (SAFMN-L). Taken apart, one half of a block needs 8 rows and the other
half 1, so that little is computed twice. A network defines its chain in its method ``stages``; without one it is run
in tiles that carry the whole halo, or, where it sees the whole frame, in tiles that fade into each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from torch import Tensor, nn

from safmn.archs.blocks import FMM, FeedForward, SimpleSAFM
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


def stage(module: StageModule, steps: Sequence[Step], up: int = 1) -> Stage:
    """A module as a stage that sees as far as its steps say."""
    return Stage(module, module.in_channels, halo=_reach(steps, module.window), window=module.window, up=up)


def skip(inner: Chain, channels: int) -> Skip:
    """``inner(x) + x`` for a chain of features."""
    return Skip(inner, Stage(lambda x: x, channels, halo=0))


def _reach(steps: Sequence[Step], window: int) -> int:
    """The halo of ranges on multiples of ``window``: 8 for pooling by 8 and a 3x3, though single pixels see 15."""
    lowest = 0
    for pixel in range(window):
        for step in reversed(steps):
            pixel = step.first(pixel)
        lowest = min(lowest, pixel)
    return -lowest


def fmm_stages(block: FMM) -> Chain:
    """The two halves of a feature mixing module."""
    dim = block.safm.aggr.in_channels
    return (
        stage(NormedSkip(block.norm1, block.safm, dim, FMM.window), [PooledConv(FMM.window)]),
        stage(NormedSkip(block.norm2, block.ccm, dim), [Conv()]),
    )


def simple_safm_stages(block: SimpleSAFM) -> Chain:
    """The first convolution of a simple modulation, and the rest of it."""
    return conv_stage(block.proj), stage(Modulation(block), SimpleSAFM.steps[1:])


def feed_forward_stage(block: FeedForward) -> Stage:
    """A channel mixer."""
    return stage(Plain(block, block.conv1.in_channels), [Conv(block.conv1.kernel_size[0] // 2)])


def mixer_stage(layers: nn.Sequential) -> Stage:
    """A channel mixer that is written as a sequence of layers."""
    first = cast(nn.Conv2d, layers[0])
    return stage(Plain(layers, first.in_channels), [Conv(first.kernel_size[0] // 2)])


def conv_stage(conv: nn.Conv2d) -> Stage:
    """A convolution."""
    return stage(Plain(conv, conv.in_channels), [Conv(conv.kernel_size[0] // 2)])


def image_stage(to_img: nn.Sequential, dim: int, scale: int) -> Stage:
    """The last convolution and the pixel shuffle."""
    return stage(Plain(to_img, dim), [Conv()], up=scale)


def stages_of(network: nn.Module) -> Chain | None:
    """The chain that computes what the network does, but for the order of sums.

    None for a network whose class defines no ``stages``, such as one that sees the whole frame. A subclass may have
    another forward, so that what its base defines does not count.
    """
    if "stages" not in vars(type(network)):
        return None
    chain: Chain = network.stages()  # type: ignore[operator]
    return chain


def map_modules(chain: Chain, build: Callable[[StageModule], Callable[[Tensor], Tensor]]) -> Chain:
    """The same chain with every :class:`StageModule` run by what ``build`` makes of it."""
    return tuple(_mapped(part, build) for part in chain)


def _mapped(part: Stage | Skip, build: Callable[[StageModule], Callable[[Tensor], Tensor]]) -> Stage | Skip:
    if isinstance(part, Skip):
        return Skip(map_modules(part.inner, build), part.shortcut)
    return replace(part, run=build(part.run)) if isinstance(part.run, StageModule) else part
