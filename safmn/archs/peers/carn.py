"""CARN: cascading residual network, Ahn et al., ECCV 2018 (arXiv 1803.08664)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from safmn.archs.peers.declaration import Code, Paper, peer
from safmn.archs.peers.parts import conv1, conv3, same_names
from safmn.archs.peers.rcan_parts import MeanShift, steps_of
from safmn.archs.receptive import Conv, Shuffle, Step, halo
from safmn.archs.shapes import Shapes
from safmn.value_types import Positive

DIM = 64
PAPER = Paper(
    "Ahn, Kang, Sohn",
    "Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network",
    "ECCV 2018",
    "1803.08664",
)
CODE = Code("nmhkahn/CARN-pytorch", "MIT")


class Named(nn.Module):
    """Modules below a name, as weight files have them; it has no forward pass of its own."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class Layers(nn.Module):
    """A sequence named ``body``, optionally with a skip around it, and ReLU behind it."""

    def __init__(self, *layers: nn.Module, skip: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, 64, h, w)."""
        y: Tensor = self.body(x)
        return torch.relu(y + x if self.skip else y)


def residual_unit() -> Layers:
    """Return two 3x3 convolutions with a skip."""
    return Layers(conv3(DIM, DIM), nn.ReLU(), conv3(DIM, DIM), skip=True)


class Cascade(nn.Module):
    """Three stages; behind each, a 1x1 convolution joins its result with the input and all results before it.

    Args:
        before: Modules that stand before the stages in weight files.
        stage: Makes a stage.
        shared: Whether one stage serves all three places.
    """

    def __init__(
        self, before: Mapping[str, nn.Module], stage: Callable[[], nn.Module], *, shared: bool = False
    ) -> None:
        super().__init__()
        for name, module in before.items():
            self.add_module(name, module)
        self.shared = shared
        for number in (1,) if shared else (1, 2, 3):
            self.add_module(f"b{number}", stage())
        for number in (1, 2, 3):
            self.add_module(f"c{number}", Layers(conv1(DIM * (number + 1), DIM)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 64, h, w) to the same shape."""
        joined = output = x
        for number in (1, 2, 3):
            stage = getattr(self, f"b{1 if self.shared else number}")
            joined = torch.cat([joined, stage(output)], dim=1)
            output = getattr(self, f"c{number}")(joined)
        return output


class Enlarger(nn.Module):
    """Enlarges features: a branch ``up2``, ``up3``, ``up4`` for each scale, or a single branch ``up``."""

    def __init__(self, scale: int, multi_scale: bool, groups: int) -> None:
        super().__init__()
        self.branch = f"up{scale}" if multi_scale else "up"
        branches = {f"up{each}": each for each in (2, 3, 4)} if multi_scale else {"up": scale}
        for name, each in branches.items():
            layers: list[nn.Module] = []
            for step in steps_of(each):
                layers += [conv3(DIM, DIM * step**2, groups=groups), nn.ReLU(), nn.PixelShuffle(step)]
            self.add_module(name, Named(body=nn.Sequential(*layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 64, h, w) to (B, 64, h * scale, w * scale)."""
        y: Tensor = getattr(self, self.branch).body(x)
        return y


class CascadingNetwork(Cascade):
    """What CARN and CARN-M share: all but the residual units.

    Args:
        block: Makes a block of residual units.
        scale, multi_scale, group: see :class:`CARN`.
    """

    def __init__(self, block: Callable[[], Cascade], scale: int, multi_scale: bool, group: int) -> None:
        before = {"sub_mean": Named(shifter=MeanShift(-1)), "add_mean": Named(shifter=MeanShift(1))}
        super().__init__({**before, "entry": conv3(3, DIM)}, block)
        self.scale, self.window = scale, 1
        enlarging: list[Step] = [step for factor in steps_of(scale) for step in (Conv(), Shuffle(factor))]
        self.halo = halo([*[Conv()] * (1 + 3 * 3 * 2), *enlarging, Conv()], self.window, scale)
        self.upsample = Enlarger(scale, multi_scale, group)
        self.exit = conv3(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped."""
        network: Any = self  # the type checker takes every attribute of a module for a Tensor or a Module
        features = super().forward(network.entry(network.sub_mean.shifter(x)))  # (B, 64, h, w)
        image: Tensor = network.add_mean.shifter(self.exit(self.upsample(features)))
        return image

    @staticmethod
    def arguments_of(shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is neither CARN nor CARN-M."""
        if not same_names(shapes, "sub_mean.shifter.weight", "entry.weight", "b1.b1.body.2.weight", "c3.body.0.weight"):
            return None
        if "upsample.up2.body.0.weight" in shapes:
            group = DIM // shapes["upsample.up2.body.0.weight"][1]
            return {"scale": (2, 3, 4), "multi_scale": True, "group": group}
        first = shapes.get("upsample.up.body.0.weight")
        if first is None:
            return None
        scale = 4 if "upsample.up.body.3.weight" in shapes else math.isqrt(first[0] // DIM)
        return {"scale": scale, "multi_scale": False, "group": DIM // first[1]}


@peer(
    small={"scale": 2, "multi_scale": False},
    sizes={"CARN": {}},
    paper=PAPER,
    code=CODE,
    scale_argument="scale",
    note="The published weights serve every scale.",
)
class CARN(CascadingNetwork):
    """Cascading residual network.

    Args:
        scale: Scale of super-resolution.
        multi_scale: Whether the network has a branch for each scale, as the published weights do. Only the branch of
            ``scale`` is used.
        group: Groups of the convolutions that enlarge.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the network takes any size.
        halo: how far an output pixel depends on the input, in LR pixels to each side.
    """

    def __init__(self, scale: Literal[2, 3, 4] = 4, multi_scale: bool = True, group: Positive = 1) -> None:
        super().__init__(lambda: Cascade({}, residual_unit), scale, multi_scale, group)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        return None if "b1.b1.body.4.weight" in shapes else cls.arguments_of(shapes)
