"""Networks and stages of networks as sequences of kernel calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from safmn.archs import SAFMN, SAFMN_BCIE, SAFMN_NTIRE23
from safmn.archs.blocks import CCM, FMM, SAFM, enlarge
from safmn.archs.safmn_ntire23_arch import PlainFMM
from safmn.archs.stages import NormedSkip, Plain
from safmn.inference.optimize import IMAGE_CHANNELS
from safmn.kernels.cpu.inference import Kernels, with_workspace
from safmn.kernels.cpu.layers import Block, Convolution, FeatureMaps
from safmn.kernels.cpu.planning.planner import Planner, unsupported


@dataclass(frozen=True)
class Program:
    """The kernels' implementation of a network.

    Attributes:
        run: computes the network's output from its input, (C, h, w) float32.
            It raises :class:`safmn.kernels.cpu.planning.graph.Unsupported` for a size for which it has no kernels.
        multiple: h and w must be multiples of this.
    """

    run: Callable[[Tensor], Tensor]
    multiple: int = 1


def translate(network: nn.Module, kernels: Kernels, *, half: bool) -> Program | None:
    """Return the network as a program, or None if the kernels do not support it.

    SAFMN and its relatives have programs of their own, which are faster. Other networks are planned from their
    operations (:mod:`safmn.kernels.cpu.planning`), as far as the kernels know these.

    Args:
        network: a network or a stage, in eval mode. Its weights must not change.
        kernels: the kernels that run it.
        half: whether the factors are bfloat16 in the 3x3 convolutions between features and the 1x1 ones after them.
    """
    make = PROGRAMS.get(type(network))  # no lookup of base classes: a subclass may have a different forward
    program = None if make is None else make(network, kernels, half)
    if program is None and unsupported(network) is None:
        program = Program(Planner(network, kernels, half=half))
    return None if program is None else replace(program, run=with_workspace(program.run))


def _blocks(modules: Iterable[nn.Module], kernels: Kernels, half: bool) -> list[Block]:
    blocks = []
    for module in modules:
        assert isinstance(module, FMM | PlainFMM)
        norms = {"norm1": module.norm1, "norm2": module.norm2} if isinstance(module, FMM) else {}
        blocks.append(Block(module.safm, module.ccm, kernels, **norms, half=half))
    return blocks


def _through(blocks: Sequence[Block], frame: FeatureMaps, x: Tensor) -> Tensor:
    """Run the blocks one after the other. They write alternately to two maps, and ``x`` does not change."""
    for i, block in enumerate(blocks):
        x = block(frame, x, frame.map(("even", "odd")[i % 2], block.channels))
    return x


def _safmn(network: Any, kernels: Kernels, half: bool) -> Program:
    to_feat, to_img = (Convolution(conv, kernels, half=False) for conv in (network.to_feat, network.to_img[0]))
    blocks = _blocks(network.feats, kernels, half)

    def run(x: Tensor) -> Tensor:
        frame = FeatureMaps(kernels, *x.shape[1:])
        first = to_feat(frame, frame.read(x, "in"), frame.map("first", to_feat.out_channels))
        features = _through(blocks, frame, first).add_(first)
        return to_img.to_image(frame, features, network.scale)

    return Program(run)


def _ntire23(network: Any, kernels: Kernels, half: bool) -> Program:
    to_feat, to_img = (Convolution(conv, kernels, half=False) for conv in (network.to_feat, network.to_img[0]))
    blocks = _blocks(network.feats, kernels, half)

    def run(x: Tensor) -> Tensor:
        frame = FeatureMaps(kernels, *x.shape[1:])
        channels = to_feat.out_channels
        first = to_feat(frame, frame.read(x, "in"), frame.map("first", channels))
        normed = network.norm(frame.write(first, channels)[None])[0]  # needs the whole frame
        features = _through(blocks, frame, frame.read(normed, "first"))
        detail = to_img.to_image(frame, features, network.scale)
        return detail.add_(enlarge(x[None], network.scale)[0])

    return Program(run)


def _bcie(network: Any, kernels: Kernels, half: bool) -> Program:
    unshuffle, first_conv = network.to_feat
    conv, shuffle, last_conv = network.to_img
    to_feat, enlarged, to_img = (Convolution(part, kernels, half=False) for part in (first_conv, conv, last_conv))
    groups = [
        (_blocks(group.layers, kernels, half), Convolution(group.conv, kernels, half=half)) for group in network.feats
    ]

    def run(x: Tensor) -> Tensor:
        x = unshuffle(x)
        frame = FeatureMaps(kernels, *x.shape[1:])
        first = to_feat(frame, frame.read(x, "in"), frame.map("first", to_feat.out_channels))
        features = frame.map("group", to_feat.out_channels).copy_(first)
        for blocks, end in groups:
            features = end(frame, _through(blocks, frame, features), features, add=features)
        large = enlarged.to_image(frame, features.add_(first), shuffle.upscale_factor)
        return _convolved(large, to_img, kernels)

    return Program(run, multiple=2)  # pixels are unshuffled by 2


def _normed_skip(stage: Any, kernels: Kernels, half: bool) -> Program | None:
    """Return one half of a feature mixing module as a program."""
    module = stage.module
    if isinstance(module, SAFM):
        block = Block(module, None, kernels, norm1=stage.norm, half=half)
    elif isinstance(module, CCM):
        block = Block(None, module, kernels, norm2=stage.norm, half=half)
    else:
        return None

    def run(x: Tensor) -> Tensor:
        frame = FeatureMaps(kernels, *x.shape[1:])
        return frame.write(block(frame, frame.read(x, "in"), frame.map("out", block.channels)), block.channels)

    return Program(run)


def _plain(stage: Any, kernels: Kernels, half: bool) -> Program | None:
    """Return a 3x3 convolution, with or without a pixel shuffle, as a program."""
    layers: list[Any] = list(stage.module) if isinstance(stage.module, nn.Sequential) else [stage.module]
    shuffle = layers.pop() if isinstance(layers[-1], nn.PixelShuffle) else None
    if len(layers) != 1 or not isinstance(layers[0], nn.Conv2d):
        return None
    if layers[0].kernel_size != (3, 3) or layers[0].groups > 1:
        return None
    scale = 1 if shuffle is None else int(shuffle.upscale_factor)
    between_features = layers[0].in_channels > IMAGE_CHANNELS and layers[0].out_channels > 3 and shuffle is None
    conv = Convolution(layers[0], kernels, half=half and between_features)
    return Program(lambda x: _convolved(x, conv, kernels, scale))


def _convolved(x: Tensor, conv: Convolution, kernels: Kernels, scale: int = 1) -> Tensor:
    """Apply the convolution and a pixel shuffle by ``scale`` to an image (C, h, w)."""
    frame = FeatureMaps(kernels, *x.shape[1:])
    return conv.to_image(frame, frame.read(x, "in"), scale)


PROGRAMS: dict[type[nn.Module], Callable[[Any, Kernels, bool], Program | None]] = {
    SAFMN: _safmn,
    SAFMN_NTIRE23: _ntire23,
    SAFMN_BCIE: _bcie,
    NormedSkip: _normed_skip,
    Plain: _plain,
}
