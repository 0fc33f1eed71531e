"""The code of passes over a frame, for ``code.h``."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from safmn.kernels.cpu.planning.fusion import Fusion, Item, Pass
from safmn.kernels.cpu.planning.graph import (
    ARITHMETIC,
    CURVES,
    IN_MAPS,
    Activation,
    Enlarging,
    Node,
    Piece,
    Point,
    Unsupported,
)
from safmn.kernels.cpu.planning.packing import Packing

MOST_TENSORS = 12
"""Tensors that the code of a pass can name."""
_REGISTER, _HEAD, _MAP, _LINES, _VECTOR = range(5)  # places of operands
_OPERATIONS = ("conv1", "point", "depthwise", "mean", "length", "normalise")  # in the order of passes.h
_NOWHERE = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Code:
    """A pass as ``passes.h`` takes it.

    Attributes:
        numbers: the code.
        weights: of everything but the convolution.
        taps, bias: of the convolution; None without one.
        tensors: the nodes whose tensors are the further arguments.
    """

    numbers: Tensor
    weights: Tensor
    taps: Tensor | None
    bias: Tensor | None
    tensors: list[Node]


class Registers:
    """Places for values that live only during a pass, in channels."""

    def __init__(self) -> None:
        self.size = 0
        self._free: list[tuple[int, int]] = []  # begin, end

    def take(self, channels: int) -> int:
        """Return the first of so many free channels."""
        for i, (begin, end) in enumerate(self._free):
            if end - begin >= channels:
                self._free[i] = (begin + channels, end)
                return begin
        self.size += channels
        return self.size - channels

    def give(self, begin: int, channels: int) -> None:
        """Return channels."""
        joined: list[tuple[int, int]] = []
        for first, end in sorted([*self._free, (begin, begin + channels)]):
            if joined and joined[-1][1] == first:
                joined[-1] = (joined[-1][0], end)
            elif first < end:
                joined.append((first, end))
        self._free = joined


class Coder:
    """Makes the code of a pass.

    Args:
        work: the pass.
        users: the nodes that read a node.
        packing: the packed weights.
        half: whether the convolution's factors are bfloat16.
    """

    def __init__(self, work: Pass, users: dict[Node, list[Node]], packing: Packing, *, half: bool) -> None:
        self._pass, self._packing, self._half = work, packing, half
        self._fusion = Fusion(work, users)
        self._tensors: dict[Node, int] = {}
        self._places: dict[Node, tuple[int, int, int]] = {}  # place, index, first channel
        self._registers = Registers()
        self._weights: list[Tensor] = []
        self._weight_count = 0
        self._lines: list[list[int]] = []

    def code(self) -> Code:
        """Return the code.

        Raises:
            Unsupported: the pass reads and writes more tensors than it can name.
        """
        head, first = self._pass.head, 0
        source = self._pass.source if head else None
        source_index = self._index(source.node) if source else 0
        outputs = []
        for node in self._fusion.heads:
            stored = node in self._pass.stored
            self._places[node] = (_MAP, self._index(node), 0) if stored else (_HEAD, 0, first)
            outputs += [self._index(node) if stored else -1, node.shape[1]]
            first += node.shape[1]
        self._emit_all()
        if len(self._tensors) > MOST_TENSORS:
            raise Unsupported(f"{len(self._tensors)} features at once (at most {MOST_TENSORS})")
        numbers = [int(bool(head)), int(self._half), source_index]
        numbers += [source.first, source.count] if source else [0, 0]
        numbers += [first, *_activation(self._fusion.activation), self._registers.size]
        numbers += [len(self._fusion.heads), *outputs]
        numbers += [len(self._tensors), len(self._lines)]
        numbers += [number for node in self._tensors for number in self._tensor(node)]
        numbers += [number for line in self._lines for number in line]
        weights = [node.details for node in head]
        return Code(
            torch.tensor(numbers, dtype=torch.int32),
            torch.cat([*self._weights, torch.zeros(self._packing.block_size)]),
            self._packing.taps(weights, self._half) if head else None,
            self._packing.bias(weights) if head else None,
            list(self._tensors),
        )

    def _emit_all(self) -> None:
        items = self._fusion.items
        last = {node: i for i, item in enumerate(items) for node in item.reads}
        for i, item in enumerate(items):
            self._emit(item)
            for node in dict.fromkeys([*item.reads, item.result]):
                place, index, _ = self._places.get(node, (_MAP, 0, 0))
                if place == _REGISTER and last.get(node, i) == i:
                    self._registers.give(index, node.shape[1])

    # Where values are

    def _index(self, node: Node) -> int:
        return self._tensors.setdefault(node, len(self._tensors))

    def _tensor(self, node: Node) -> list[int]:
        """Return the description of a tensor: place, channels, rows, columns, how it is enlarged."""
        if node.kind == "enlarged":
            enlarging: Enlarging = node.details
            small = node.inputs[0].pieces[0].node.frame
            steps = [_bits(enlarging.row_step), _bits(enlarging.column_step)]
            return [_LINES, node.shape[1], *small, int(enlarging.bilinear), *steps]
        return [_MAP if self._is_map(node) else _VECTOR, node.shape[1], 0, 0, 0, 0, 0]

    def _is_map(self, node: Node) -> bool:
        return node.kind in IN_MAPS and node.frame == self._pass.frame

    def _target(self, node: Node) -> tuple[int, int, int, int]:
        """Choose where the result of a node goes."""
        if node in self._pass.stored:
            self._places[node] = (_MAP, self._index(node), 0)
        else:
            self._places[node] = (_REGISTER, self._registers.take(node.shape[1]), 0)
        return (*self._places[node], 0)

    def _operand(self, piece: Piece, channels: int) -> tuple[int, int, int, int]:
        """Return where a piece is, for an operation on so many channels."""
        node, one = piece.node, int(piece.count == 1 and channels > 1)
        if node in self._places:
            place, index, first = self._places[node]
            return (place, index, first + piece.first, one)
        place = _LINES if node.kind == "enlarged" else _MAP if self._is_map(node) else _VECTOR
        return (place, self._index(node), piece.first, one)

    # Instructions

    def _emit(self, item: Item) -> None:
        node, to, channels = item.node, self._target(item.result), item.node.shape[1]
        if node.kind == "point":
            self._emit_point(item, to)
            return
        pieces: list[Piece] = []
        if node.kind == "conv1":
            pieces, a = list(node.inputs[0].pieces), _NOWHERE
        else:
            a = self._operand(node.inputs[0].pieces[0], node.inputs[0].channels)
        b = _NOWHERE if item.other is None else self._operand(item.other.pieces[0], channels)
        self._line(node.kind, node, channels, to, a, b, item.point, pieces)

    def _emit_point(self, item: Item, to: tuple[int, int, int, int]) -> None:
        """Emit one instruction for each range of channels whose operands are in one place."""
        channels = item.node.shape[1]
        values = item.node.inputs
        ends = {channels}
        for value in values:
            end = 0
            for piece in value.pieces if value.channels > 1 else ():
                end += piece.count
                ends.add(end)
        begin = 0
        for end in sorted(ends):
            count = end - begin
            parts = [value if value.channels == 1 else value.part(begin, count) for value in values]
            a, *rest = (self._operand(part.pieces[0], count) for part in parts)
            place = (to[0], to[1], to[2] + begin, 0)
            self._line("point", item.node, count, place, a, rest[0] if rest else _NOWHERE, item.point)
            begin = end

    def _line(
        self,
        operation: str,
        node: Node,
        channels: int,
        to: tuple[int, ...],
        a: tuple[int, ...],
        b: tuple[int, ...] = _NOWHERE,
        point: Point = Point(),  # noqa: B008
        pieces: Iterable[Piece] = (),
    ) -> None:
        """Append an instruction."""
        shift = node.details.eps if operation == "normalise" else point.shift
        line = [_OPERATIONS.index(operation), channels, *to, *a, *b]
        line += [ARITHMETIC.index(point.op), _bits(point.scale), _bits(shift), *_activation(point.activation)]
        line += [*self._weights_of(node, operation), node.inputs[0].channels]
        ranges = [[*self._operand(piece, piece.count), piece.count] for piece in pieces]
        self._lines.append([*line, len(ranges), *(number for each in ranges for number in each)])

    def _weights_of(self, node: Node, operation: str) -> tuple[int, int]:
        """Return where the weights and the bias of a node begin."""
        if operation not in ("conv1", "depthwise", "normalise"):
            return 0, 0
        row, bias = self._packing.flat(node)
        begin = self._weight_count
        self._weights.append(row)
        self._weight_count += len(row)
        return begin, begin + bias


def _activation(activation: Activation) -> tuple[int, int, int]:
    return CURVES.index(activation.curve), _bits(activation.first), _bits(activation.second)


def _bits(value: float) -> int:
    """Return the bits of a float32 as a whole number."""
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits
