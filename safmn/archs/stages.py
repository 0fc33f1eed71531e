"""A network as a chain of stages, each of which sees only a few rows.

:mod:`safmn.inference.streaming` runs the stages one after the other, a band of rows at a time. A tile of the whole
network needs a halo of 130 pixels (SAFMN) or 258 (SAFMN-L). As separate stages, one half of a block needs a halo of
8 rows and the other half 1, so little is computed twice. A network defines its chain in its method ``stages``. Without
that method it runs in tiles with the whole halo, or, if it sees the whole frame, in overlapping blended tiles.
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
    """A part of a network that computes rows from rows.

    Attributes:
        run: maps (B, channels, h, w) to (B, C', h * up / down, w * up / down).
        channels: channels of the input.
        halo: rows (and columns) needed beyond each end of a range of outputs, in input pixels. The range begins and
            ends at multiples of ``window``.
        window: the input begins at a multiple of this, and its height is a multiple of it.
        up: factor of enlargement.
        down: factor of reduction.
    """

    run: Callable[[Tensor], Tensor]
    channels: int
    halo: int
    window: int = 1
    up: int = 1
    down: int = 1


@dataclass(frozen=True)
class Skip:
    """``inner(x) + shortcut(x)``. The shortcut enlarges as much as ``inner`` and needs no larger halo."""

    inner: Chain
    shortcut: Stage


Chain: TypeAlias = "tuple[Stage | Skip, ...]"


class StageModule(nn.Module):
    """A stage as a separate network, for the back ends.

    Attributes:
        in_channels: channels of the input, (B, in_channels, h, w).
        window: the sides of the input are multiples of this.
    """

    def __init__(self, in_channels: int, window: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.window = window


class Plain(StageModule):
    """Wraps an unchanged module whose input is (B, in_channels, h, w)."""

    def __init__(self, module: nn.Module, in_channels: int, window: int = 1) -> None:
        super().__init__(in_channels, window)
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Run the module."""
        y: Tensor = self.module(x)
        return y


class NormedSkip(StageModule):
    """``module(norm(x)) + x``: one half of a feature mixing module."""

    def __init__(self, norm: nn.Module, module: nn.Module, in_channels: int, window: int = 1) -> None:
        super().__init__(in_channels, window)
        self.norm = norm
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to the same shape."""
        y: Tensor = self.module(self.norm(x)) + x
        return y


class Modulation(StageModule):
    """:class:`SimpleSAFM` without its first convolution."""

    def __init__(self, block: SimpleSAFM) -> None:
        super().__init__(block.proj.out_channels, SimpleSAFM.window)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to the same shape."""
        return self.block.modulate(x)


def stage(module: StageModule, steps: Sequence[Step], up: int = 1) -> Stage:
    """Return a module as a stage. Its halo follows from ``steps``."""
    return Stage(module, module.in_channels, halo=_reach(steps, module.window), window=module.window, up=up)


def skip(inner: Chain, channels: int) -> Skip:
    """Return ``inner(x) + x`` for a chain whose input and output have ``channels`` channels."""
    return Skip(inner, Stage(lambda x: x, channels, halo=0))


def _reach(steps: Sequence[Step], window: int) -> int:
    """Return the halo of ranges at multiples of ``window``: 8 for pooling by 8 and a 3x3 (15 for a single pixel)."""
    lowest = 0
    for pixel in range(window):
        for step in reversed(steps):
            pixel = step.first(pixel)
        lowest = min(lowest, pixel)
    return -lowest


def fmm_stages(block: FMM) -> Chain:
    """Return the two halves of a feature mixing module as stages."""
    dim = block.safm.aggr.in_channels
    return (
        stage(NormedSkip(block.norm1, block.safm, dim, FMM.window), [PooledConv(FMM.window)]),
        stage(NormedSkip(block.norm2, block.ccm, dim), [Conv()]),
    )


def simple_safm_stages(block: SimpleSAFM) -> Chain:
    """Return the first convolution of a simple modulation, and the rest of it, as stages."""
    return conv_stage(block.proj), stage(Modulation(block), SimpleSAFM.steps[1:])


def feed_forward_stage(block: FeedForward) -> Stage:
    """Return a channel mixer as a stage."""
    return stage(Plain(block, block.conv1.in_channels), [Conv(block.conv1.kernel_size[0] // 2)])


def mixer_stage(layers: nn.Sequential) -> Stage:
    """Return a channel mixer that is a sequence of layers as a stage."""
    first = cast(nn.Conv2d, layers[0])
    return stage(Plain(layers, first.in_channels), [Conv(first.kernel_size[0] // 2)])


def conv_stage(conv: nn.Conv2d) -> Stage:
    """Return a convolution as a stage."""
    return stage(Plain(conv, conv.in_channels), [Conv(conv.kernel_size[0] // 2)])


def image_stage(to_img: nn.Sequential, dim: int, scale: int) -> Stage:
    """Return the last convolution and the pixel shuffle as one stage."""
    return stage(Plain(to_img, dim), [Conv()], up=scale)


def stages_of(network: nn.Module) -> Chain | None:
    """Return the chain that computes the network's result, up to rounding (the order of sums differs).

    It is None if the network's own class defines no ``stages``, as for networks that see the whole frame. An inherited
    ``stages`` does not count, because a subclass may have a different forward.
    """
    if "stages" not in vars(type(network)):
        return None
    chain: Chain = network.stages()  # type: ignore[operator]
    return chain


def map_modules(chain: Chain, build: Callable[[StageModule], Callable[[Tensor], Tensor]]) -> Chain:
    """Return the chain with every :class:`StageModule` replaced by the function that ``build`` makes from it."""
    return tuple(_mapped(part, build) for part in chain)


def _mapped(part: Stage | Skip, build: Callable[[StageModule], Callable[[Tensor], Tensor]]) -> Stage | Skip:
    if isinstance(part, Skip):
        return Skip(map_modules(part.inner, build), part.shortcut)
    return replace(part, run=build(part.run)) if isinstance(part.run, StageModule) else part
