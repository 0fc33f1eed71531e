"""CARN-M: the mobile form of CARN, Ahn et al., ECCV 2018 (arXiv 1803.08664)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from safmn.archs.peers.carn import CODE, DIM, PAPER, Cascade, CascadingNetwork, Layers
from safmn.archs.peers.declaration import peer
from safmn.archs.peers.parts import conv1, conv3
from safmn.archs.shapes import Shapes
from safmn.value_types import Positive


def efficient_unit(group: int) -> Layers:
    """Return two grouped 3x3 convolutions and a 1x1 one, with a skip."""
    first, second = (conv3(DIM, DIM, groups=group) for _ in range(2))
    return Layers(first, nn.ReLU(), second, nn.ReLU(), conv1(DIM, DIM), skip=True)


@peer(
    small={"scale": 2, "multi_scale": False},
    sizes={"CARN-M": {}},
    paper=PAPER,
    code=CODE,
    scale_argument="scale",
    note="The published weights serve every scale.",
)
class CARN_M(CascadingNetwork):
    """CARN with grouped convolutions, and with one residual unit for the three places of a block.

    Args:
        scale: Scale of super-resolution.
        multi_scale: Whether the network has a branch for each scale, as the published weights do. Only the branch of
            ``scale`` is used.
        group: Groups of the convolutions in the residual units and of those that enlarge.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the input, in LR pixels to each side.
    """

    def __init__(self, scale: Literal[2, 3, 4] = 4, multi_scale: bool = True, group: Positive = 4) -> None:
        super().__init__(lambda: Cascade({}, lambda: efficient_unit(group), shared=True), scale, multi_scale, group)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        return cls.arguments_of(shapes) if "b1.b1.body.4.weight" in shapes else None
