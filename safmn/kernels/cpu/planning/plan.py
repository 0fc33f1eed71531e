"""Divide a network's operations into steps: passes over a frame, and what lies between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from safmn.inference.optimize import IMAGE_CHANNELS
from safmn.kernels.cpu.inference import Kernels, workspace
from safmn.kernels.cpu.layers import to_image
from safmn.kernels.cpu.planning.fusion import Pass
from safmn.kernels.cpu.planning.graph import IN_MAPS, PIXELWISE, Call, Input, Node, Piece, Value
from safmn.kernels.cpu.planning.packing import Packing
from safmn.kernels.cpu.planning.passes import MOST_TENSORS, Code, Coder


@dataclass
class Memory:
    """The tensors of one run.

    Attributes:
        plain: results that are no maps, by node.
        maps: maps, by node.
    """

    kernels: Kernels
    plain: dict[Node, Tensor] = field(default_factory=dict)
    maps: dict[Node, Tensor] = field(default_factory=dict)

    def to_plain(self, value: Value) -> Tensor:
        """Return a value as a tensor (1, channels, h, w)."""
        parts = [self._plain_piece(piece) for piece in value.pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _plain_piece(self, piece: Piece) -> Tensor:
        node = piece.node
        if node.kind not in IN_MAPS:
            tensor = node.details if node.kind == "constant" else self.plain[node]
            whole = piece.is_whole or tensor.ndim != 4
            part: Tensor = tensor if whole else tensor[:, piece.first : piece.first + piece.count]
            return part
        return self.image(piece, 1)

    def image(self, piece: Piece, scale: int, added: Node | None = None) -> Tensor:
        """Return channels of a map as a tensor, by pixel shuffle, plus an image in a map, enlarged bilinearly."""
        height, width = piece.node.frame
        channels = piece.count // scale**2
        made = torch.empty(1, channels, height * scale, width * scale, dtype=torch.float32)
        sizes = (piece.node.shape[1], piece.first, channels, height, width, scale)
        self.kernels.call("from_map", self.maps[piece.node], made, None if added is None else self.maps[added], *sizes)
        return made


Step = Callable[[Memory], None]


@dataclass
class Planned:
    """A step and the maps that it writes and reads."""

    run: Step
    writes: list[Node] = field(default_factory=list)
    reads: list[Node] = field(default_factory=list)


class Plan:
    """The steps of a network for one size of image.

    Args:
        result: the network's result, as recorded.
        kernels: the kernels.
        packing: packed weights; plans share them.
        half: see :func:`safmn.kernels.cpu.programs.translate`.

    Raises:
        Unsupported: a step is not possible.
    """

    def __init__(self, result: Value, kernels: Kernels, packing: Packing, *, half: bool) -> None:
        self._kernels, self._result = kernels, result
        nodes = _in_order(result)
        self.users = _users(nodes)
        self.steps = _divided(nodes)
        self._last = _last_convolutions(self.steps, self.users, result)
        self.steps = [step for step in self.steps if step not in self._last.values()]
        self._store(result)
        self._image = next((node for node in nodes if node.kind == "image"), None)
        self._planned = [self._prepared(step, packing, half) for step in self.steps]
        self._slots = self._share_memory(result)

    def __call__(self, image: Tensor) -> Tensor:
        """Return the result (C, h * scale, w * scale) for an image (C, h, w)."""
        memory = Memory(self._kernels)
        if self._image is not None:
            memory.plain[self._image] = image[None].contiguous()
        for step in self._planned:
            for node in step.writes:
                slot, floats = self._slots[node]
                memory.maps[node] = workspace().get(f"plan {slot}", floats)
            step.run(memory)
        result = memory.to_plain(self._result)[0]
        return result.clone() if result.data_ptr() == image.data_ptr() else result

    def _store(self, result: Value) -> None:
        """Mark what has to be in a map: what another step reads."""
        where = {node: step for step in self.steps if isinstance(step, Pass) for node in (*step.head, *step.nodes)}
        for node, users in self.users.items():
            if node in where and any(where.get(user) is not where[node] for user in users):
                where[node].stored.add(node)
        for node in result.nodes:
            if node in where:
                where[node].stored.add(node)

    def _prepared(self, step: Pass | Node, packing: Packing, half: bool) -> Planned:
        if isinstance(step, Pass):
            code = Coder(step, self.users, packing, half=half and self._may_be_half(step)).code()
            run = _pass_step(code, step.frame)
            read = list(step.outside())
            read += [other for node in read if node.kind == "enlarged" for other in node.inputs[0].nodes]
            return Planned(run, writes=sorted(step.stored, key=lambda node: node.number), reads=read)
        if step in self._last:
            source = self._last[step].source
            reads = [source.node, *(node for value in step.inputs[1:] for node in value.nodes)]
            return Planned(_convolving_shuffle_step(step, source, packing), reads=reads)
        writes = [step] if step.kind == "read" else []
        reads = [node for value in step.inputs for node in value.nodes]
        return Planned(_STEPS[step.kind](step), writes, reads)

    def _may_be_half(self, step: Pass) -> bool:
        """Return whether the convolution leads from features to features."""
        if not step.head or step.source.count <= IMAGE_CHANNELS:
            return False
        to_image = any(user.kind == "shuffle" for node in step.head for user in self.users[node])
        return not to_image and all(node.shape[1] > 3 for node in step.head)

    def _share_memory(self, result: Value) -> dict[Node, tuple[int, int]]:
        """Return for each map the number of its memory and its size. Maps that are not needed at once may share it."""
        last = {node: i for i, step in enumerate(self._planned) for node in step.reads}
        last.update(dict.fromkeys(result.nodes, len(self._planned)))
        slots: dict[Node, tuple[int, int]] = {}
        free: list[int] = []
        for i, step in enumerate(self._planned):
            for node in step.writes:
                floats = node.shape[1] * node.shape[2] * self._kernels.line(node.shape[3])
                slot = free.pop() if free else len({number for number, _ in slots.values()})
                slots[node] = (slot, floats)
            for node in {*step.reads, *step.writes}:
                if node in slots and last.get(node, i) == i:
                    free.append(slots[node][0])
        return slots


def _in_order(result: Value) -> list[Node]:
    """Return the nodes that a result depends on, in the order in which they were recorded."""
    found: set[Node] = set()
    waiting = list(result.nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [other for value in node.inputs for other in value.nodes]
    return sorted(found, key=lambda node: node.number)


def _users(nodes: list[Node]) -> dict[Node, list[Node]]:
    users: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        for value in node.inputs:
            for other in value.nodes:
                users[other].append(node)
    return users


def _divided(nodes: list[Node]) -> list[Pass | Node]:
    """Divide operations into steps. Each one joins the latest step that it depends on, if that is a pass."""
    steps: list[Pass | Node] = []
    made_by: dict[Node, int] = {}  # the step that makes a result; -1: it is there at the beginning
    heads: dict[tuple[Value, bool], int] = {}
    for node in nodes:
        before = max((made_by[other] for value in node.inputs for other in value.nodes), default=-1)
        if node.kind in ("image", "constant", "enlarged"):
            made_by[node] = before
        elif node.kind == "conv3":
            made_by[node] = heads.setdefault((node.inputs[0], False), len(steps))
            if made_by[node] == len(steps):
                steps.append(Pass(node.frame))
            _pass(steps[made_by[node]]).head.append(node)
        elif node.kind in PIXELWISE:
            latest = steps[before] if before >= 0 else None
            if not _joins(node, latest, before, made_by):
                steps.append(Pass(node.frame))
                before = len(steps) - 1
            _pass(steps[before]).nodes.append(node)
            made_by[node] = before
        else:
            made_by[node] = len(steps)
            steps.append(node)
    return steps


def _last_convolutions(
    steps: list[Pass | Node], users: dict[Node, list[Node]], result: Value
) -> dict[Pass | Node, Pass]:
    """Return the passes that are computed together with a pixel shuffle: one convolution, which nothing else reads."""
    alone = {step.head[0]: step for step in steps if isinstance(step, Pass) and len(step.head) == 1 and not step.nodes}
    found: dict[Pass | Node, Pass] = {}
    for step in steps:
        piece = step.inputs[0].pieces[0] if isinstance(step, Node) and step.kind == "shuffle" else None
        if piece is None or not piece.is_whole or piece.node not in alone:
            continue
        if users[piece.node] == [step] and piece.node not in result.nodes:
            found[step] = alone[piece.node]
    return found


def _pass(step: Pass | Node) -> Pass:
    assert isinstance(step, Pass)
    return step


def _joins(node: Node, step: Pass | Node | None, position: int, made_by: dict[Node, int]) -> bool:
    """Return whether a node can be computed in a step, the latest one on which it depends."""
    if not isinstance(step, Pass) or step.frame != node.frame or node.kind == "depthwise":
        return False
    enlarged = [other for value in node.inputs for other in value.nodes if other.kind == "enlarged"]
    if any(made_by[other] == position for other in enlarged):  # it enlarges the step's result
        return False
    # It must name the tensors of the node, and those that it may have to store.
    trial = Pass(step.frame, step.head, [*step.nodes, node])
    return len(list(trial.outside())) + 4 <= MOST_TENSORS


# Steps


def _pass_step(code: Code, frame: tuple[int, int]) -> Step:
    def run(memory: Memory) -> None:
        tensors = [_tensor_of(memory, node, frame) for node in code.tensors]
        empty = [None] * (MOST_TENSORS - len(tensors))
        memory.kernels.call("pass", code.numbers, code.weights, code.taps, code.bias, *frame, *tensors, *empty)

    return run


def _tensor_of(memory: Memory, node: Node, frame: tuple[int, int]) -> Tensor:
    if node.kind == "enlarged":
        return memory.to_plain(node.inputs[0]).contiguous()
    if node.kind in IN_MAPS and node.frame == frame:
        return memory.maps[node]
    return memory.to_plain(Value((Piece(node, 0, node.shape[1]),))).contiguous()


def _read_step(node: Node) -> Step:
    def run(memory: Memory) -> None:
        image = memory.to_plain(node.inputs[0])[0]
        image = image if image.stride(2) == 1 else image.contiguous()
        memory.kernels.call("to_map", image, memory.maps[node], *node.shape[1:], *image.stride()[:2])

    return run


def _of_map(memory: Memory, node: Node) -> tuple[Tensor, tuple[int, ...]]:
    """Return the map that a node reads, and its channels, the first channel, their number, height and width."""
    piece = node.inputs[0].pieces[0]
    return memory.maps[piece.node], (piece.node.shape[1], piece.first, piece.count, *piece.node.frame)


def _pool_step(node: Node) -> Step:
    def run(memory: Memory) -> None:
        source, sizes = _of_map(memory, node)
        memory.plain[node] = torch.empty(node.shape, dtype=torch.float32)
        memory.kernels.call("pool", source, memory.plain[node], *sizes, node.details, *node.frame)

    return run


def _moments_step(node: Node) -> Step:
    def run(memory: Memory) -> None:
        source, sizes = _of_map(memory, node)
        memory.plain[node] = torch.empty(node.shape, dtype=torch.float64)
        memory.kernels.call("moments", source, memory.plain[node], *sizes)

    return run


def _statistic_step(node: Node) -> Step:
    moments = node.inputs[0].pieces[0].node
    height, width = moments.inputs[0].pieces[0].node.frame

    def run(memory: Memory) -> None:
        mean, squares = memory.plain[moments]
        memory.plain[node] = node.details(mean, squares, height * width).to(torch.float32).reshape(node.shape)

    return run


def _shuffle_step(node: Node) -> Step:
    def run(memory: Memory) -> None:
        added = node.inputs[1].pieces[0].node if len(node.inputs) > 1 else None
        memory.plain[node] = memory.image(node.inputs[0].pieces[0], node.details, added)

    return run


def _convolving_shuffle_step(node: Node, source: Piece, packing: Packing) -> Step:
    """Return the step of a pixel shuffle and the 3x3 convolution before it."""
    conv = node.inputs[0].pieces[0].node
    taps, bias = packing.taps([conv.details], half=False), packing.bias([conv.details])
    sizes = (source.node.shape[1], source.first, source.count, conv.shape[1], *conv.frame, node.details)

    def run(memory: Memory) -> None:
        added = memory.maps[node.inputs[1].pieces[0].node] if len(node.inputs) > 1 else None
        memory.plain[node] = to_image(memory.kernels, memory.maps[source.node], added, sizes, taps, bias)[None]

    return run


def _torch_step(node: Node) -> Step:
    call: Call = node.details

    def run(memory: Memory) -> None:
        inputs = [memory.to_plain(value) for value in node.inputs]

        def place(item: Any) -> Any:
            return inputs[item.index] if isinstance(item, Input) else item

        result = call.operator(*pytree.tree_map(place, call.args), **pytree.tree_map(place, call.kwargs))
        memory.plain[node] = result if call.part is None else result[call.part]

    return run


_STEPS: dict[str, Callable[[Node], Step]] = {
    "read": _read_step,
    "pool": _pool_step,
    "moments": _moments_step,
    "statistic": _statistic_step,
    "shuffle": _shuffle_step,
    "torch": _torch_step,
}
