"""The operations of a network, as :mod:`safmn.kernels.cpu.planning.tracing` records them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

CURVES = ("none", "gelu", "gelu_tanh", "relu", "leaky_relu", "sigmoid", "silu", "tanh", "sqrt", "clamp")
"""Activation functions, in the order of ``activations.h``."""
ARITHMETIC = ("", "+", "-", "*", "/")
"""Operations on two values, in the order of ``passes.h``. The first is a copy."""

PIXELWISE = frozenset({"conv1", "point", "depthwise", "mean", "length", "normalise"})
"""Kinds of operations that a pass can do after its convolution."""
IN_MAPS = PIXELWISE | {"read", "conv3"}
"""Kinds of operations whose result is a map of the native kernels. Other results are plain tensors."""


class Unsupported(Exception):
    """The native kernels cannot run a network. The message names the operation."""


@dataclass(frozen=True)
class Activation:
    """A function of each value: a name of :data:`CURVES`, and its slope or limits."""

    curve: str = "none"
    first: float = 0.0
    second: float = 0.0


@dataclass(frozen=True)
class Point:
    """``activation((a op b) * scale + shift)`` of each value.

    Attributes:
        op: one of :data:`ARITHMETIC`; "" if there is no b.
    """

    op: str = ""
    scale: float = 1.0
    shift: float = 0.0
    activation: Activation = Activation()

    @property
    def only_activation(self) -> bool:
        """Whether it does nothing but apply the activation."""
        return self == Point(activation=self.activation)


@dataclass(frozen=True, eq=False)
class Weights:
    """Weight and bias of a convolution or normalisation."""

    weight: Tensor
    bias: Tensor | None
    eps: float = 0.0


@dataclass(frozen=True)
class Enlarging:
    """How a small image becomes a frame.

    Attributes:
        bilinear: or nearest neighbours.
        row_step, column_step: pixels of the small image per pixel of the frame.
    """

    bilinear: bool
    row_step: float
    column_step: float


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a torch operator. Among the arguments, an :class:`Input` stands for an input of the node."""

    operator: Any
    args: Any
    kwargs: Any
    part: int | None = None  # of a result that is a tuple


@dataclass(frozen=True)
class Input:
    """The place of a node's input in the arguments of a call."""

    index: int


@dataclass(eq=False)
class Node:
    """One operation.

    Attributes:
        kind: one of :data:`IN_MAPS`, or ``image``, ``constant``, ``enlarged``, ``pool``, ``moments``, ``statistic``,
            ``shuffle`` or ``torch``.
        shape: of the result.
        inputs: the values that it is computed from.
        details: what the kind needs: :class:`Weights`, :class:`Point`, :class:`Enlarging`, :class:`Call` and others.
        reduced: whether the result has far fewer pixels than the frame that it was made from, as after pooling.
        number: position in the order in which the network computes.
    """

    kind: str
    shape: tuple[int, ...]
    inputs: tuple[Value, ...] = ()
    details: Any = None
    reduced: bool = False
    number: int = -1

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of the result, (1, channels, height, width)."""
        return self.shape[2], self.shape[3]


@dataclass(frozen=True)
class Piece:
    """A range of the channels of a node's result."""

    node: Node
    first: int
    count: int

    @property
    def is_whole(self) -> bool:
        """Whether these are all channels."""
        return len(self.node.shape) == 4 and self.first == 0 and self.count == self.node.shape[1]


@dataclass(frozen=True)
class Value:
    """A tensor of the network: channels of one or several results, one after the other.

    Attributes:
        pieces: where its channels are.
        channels_last: whether the tensor is (1, h, w, channels) instead of (1, channels, h, w).
    """

    pieces: tuple[Piece, ...]
    channels_last: bool = field(default=False, compare=False)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return sum(piece.count for piece in self.pieces)

    @property
    def nodes(self) -> Iterator[Node]:
        """The nodes of the pieces."""
        return (piece.node for piece in self.pieces)

    @property
    def in_maps(self) -> bool:
        """Whether a part of it is in a map or made from a small image."""
        return any(node.kind in IN_MAPS or node.kind == "enlarged" for node in self.nodes)

    def part(self, first: int, count: int) -> Value:
        """Return some of the channels."""
        found = []
        for piece in self.pieces:
            begin, end = max(first, 0), min(first + count, piece.count)
            if begin < end:
                found.append(Piece(piece.node, piece.first + begin, end - begin))
            first -= piece.count
        return Value(tuple(found))


def whole(node: Node) -> Value:
    """Return all of a node's result."""
    return Value((Piece(node, 0, node.shape[1] if len(node.shape) == 4 else 0),))
