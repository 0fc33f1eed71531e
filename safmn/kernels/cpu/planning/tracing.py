"""Record the operations that a network performs on an image of one size.

The network runs once on a tensor without values (torch's device "meta"), so that its Python code takes the same
branches as in eager mode. Each operator of torch that it calls is translated by a function of ``TRANSLATIONS``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from safmn.errors import first_line
from safmn.kernels.cpu.planning.graph import IN_MAPS, Call, Input, Node, Piece, Point, Unsupported, Value, whole
from safmn.kernels.cpu.planning.shapes import SHAPES

_KEEPING = frozenset({"clone", "alias", "detach", "lift_fresh", "contiguous", "_to_copy", "dropout"})
"""Operators that return their input."""
_VIEWS = frozenset({"split", "split_with_sizes", "slice", "expand", "permute"})


@dataclass
class Operator:
    """An operator that depends on the image.

    Attributes:
        name: torch's name, without "aten::".
        function: the operator.
        arguments: all arguments by name; tensors have no values.
        outputs: the results, without values.
    """

    name: str
    function: Any
    arguments: dict[str, Any]
    outputs: list[Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first result."""
        return tuple(self.outputs[0].shape)


class Traceable:
    """A network that can be traced any number of times, by several threads.

    Args:
        network: in eval mode. Its weights must not change.
    """

    def __init__(self, network: nn.Module) -> None:
        self._real: dict[int, Tensor] = {}  # tensors without values -> the tensors that they stand for, by id
        without: dict[int, Any] = {}
        for tensor in (*network.parameters(), *network.buffers()):
            shell = torch.empty_like(tensor, device="meta").requires_grad_(False)
            shell = nn.Parameter(shell, requires_grad=False) if isinstance(tensor, nn.Parameter) else shell
            without[id(tensor)] = shell
            self._real[id(shell)] = tensor.detach()
        self._shells = list(without.values())  # so that no id is used twice
        self._shell = copy.deepcopy(network, without)

    def trace(self, channels: int, height: int, width: int) -> tuple[Value, tuple[int, ...]]:
        """Return the result for an image (channels, height, width), as recorded operations, and its shape.

        Raises:
            Unsupported: the network does something that the native kernels cannot.
        """
        image = torch.empty(1, channels, height, width, dtype=torch.float32, device="meta")
        tracer = Tracer(self._real, image)
        try:
            with torch.inference_mode(False), torch.no_grad(), tracer:
                result = self._shell(image)
        except Unsupported:
            raise
        except Exception as error:  # own code of a network raises anything if a tensor has no values
            problem = f"{type(error).__name__}: {first_line(error)}"
            raise Unsupported(f"its operations cannot be recorded: {problem}") from error
        value = tracer.value_of(result) if isinstance(result, Tensor) else None
        if value is None or result.ndim != 4 or value.channels_last:
            raise Unsupported("its result is not an image that depends on the input")
        return value, tuple(result.shape)


class Tracer(TorchDispatchMode):
    """Records operators.

    Args:
        real: tensors without values -> the tensors that they stand for, by id.
        image: the network's input.
    """

    def __init__(self, real: dict[int, Tensor], image: Tensor) -> None:
        super().__init__()
        self._real = dict(real)
        self._kept: list[Tensor] = []  # so that no id is used twice
        self._values: dict[int, Value] = {}
        self._shared: set[int] = set()  # memory of which there are several tensors
        self._count = 0
        self._reads: dict[Node, Node] = {}
        self._moments: dict[Piece, Node] = {}
        self.remember(image, whole(self.node("image", tuple(image.shape))))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: otherwise torch imports torch._dynamo (a second of CPU time) to exclude this mode from it."""
        return False

    def node(self, kind: str, shape: Sequence[int], *inputs: Value, details: Any = None, reduced: bool = False) -> Node:
        """Return a new node, the latest one. What is made from small images is one, unless it is enlarged."""
        self._count += 1
        if inputs and kind != "enlarged":
            reduced = reduced or all(other.reduced for value in inputs for other in value.nodes)
        return Node(kind, tuple(shape), inputs, details, reduced, self._count)

    def remember(self, tensor: Tensor, value: Value) -> Tensor:
        """Let a tensor stand for a value."""
        self._kept.append(tensor)
        self._values[id(tensor)] = value
        return tensor

    def value_of(self, tensor: Tensor) -> Value | None:
        """Return the value of a tensor; None if it does not depend on the image."""
        return self._values.get(id(tensor))

    def constant(self, tensor: Tensor) -> Tensor:
        """Return the values of a tensor that does not depend on the image."""
        if tensor.device.type != "meta":
            return tensor
        if id(tensor) not in self._real:
            raise Unsupported("weights that depend on the image")
        return self._real[id(tensor)].to("cpu")

    def operand(self, tensor: Tensor) -> Value:
        """Return the value of any tensor."""
        value = self.value_of(tensor)
        if value is None:
            values = self.constant(tensor).to(torch.float32).contiguous()
            value = whole(self.node("constant", tuple(values.shape), details=values, reduced=True))
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record one operator and return tensors without values."""
        kwargs = kwargs or {}
        given = [item for item in pytree.tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        if not any(id(tensor) in self._values for tensor in given):
            return self._computed(func, args, kwargs)
        name, bound = func._schema.name.removeprefix("aten::"), _bound(func, args, kwargs)
        if func._schema.is_mutable:
            name = self._name_without_change(name, args[0])
        shapes = SHAPES.get(name)
        if shapes is not None:
            results: Any = [torch.empty(shape, dtype=torch.float32, device="meta") for shape in shapes(bound)]
        elif name in _VIEWS or name in _KEEPING:
            results = func(*args, **kwargs)  # a view
        else:
            raise Unsupported(f"the operator {name}")
        outputs = [item for item in pytree.tree_leaves(results) if isinstance(item, Tensor)]
        values = self._translated(Operator(name, func, bound, outputs))
        if func._schema.is_mutable:
            return self.remember(args[0], values[0])
        known = {tensor.untyped_storage()._cdata for tensor in given}
        for output, value in zip(outputs, values, strict=False):
            if output.untyped_storage()._cdata in known or shapes is None:
                self._shared.add(output.untyped_storage()._cdata)
            self.remember(output, value)
        if shapes is None:
            return results
        return outputs[0] if len(func._schema.returns) == 1 else tuple(outputs)

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute what does not depend on the image, and return tensors without values for it."""

        def real(item: Any) -> Any:
            if isinstance(item, torch.device):
                return torch.device("cpu")
            return self.constant(item) if isinstance(item, Tensor) else item

        def without_values(item: Any) -> Any:
            if not isinstance(item, Tensor):
                return item
            shell = torch.empty(item.shape, dtype=item.dtype, device="meta")
            self._kept.append(shell)
            self._real[id(shell)] = item
            return shell

        if func._schema.is_mutable:
            raise Unsupported("a constant that changes")
        results = func(*pytree.tree_map(real, args), **pytree.tree_map(real, kwargs))
        return pytree.tree_map(without_values, results)

    def _name_without_change(self, name: str, changed: Tensor) -> str:
        """Return the name of the operator that computes the same in new memory."""
        if id(changed) not in self._values:
            raise Unsupported("a constant that changes")
        if not name.endswith("_") or changed.untyped_storage()._cdata in self._shared:
            raise Unsupported(f"the operator {name}, which changes a part of a tensor")
        return name[:-1]

    def _translated(self, it: Operator) -> list[Value]:
        from safmn.kernels.cpu.planning.translations import TRANSLATIONS  # it needs this class

        if it.name in _KEEPING:
            return [self.operand(next(iter(it.arguments.values())))]
        return TRANSLATIONS[it.name](self, it)

    def by_torch(self, func: Any, bound: dict[str, Any], outputs: list[Tensor], reduces: bool = False) -> list[Value]:
        """Let torch compute an operator, on plain tensors. ``reduces``: it makes a small image of a large one."""
        inputs: list[Value] = []

        def place(item: Any) -> Any:
            if not isinstance(item, Tensor):
                return torch.device("cpu") if isinstance(item, torch.device) else item
            if self.value_of(item) is None:
                return self.constant(item)
            inputs.append(self.stored(self.operand(item)))
            return Input(len(inputs) - 1)

        placed = {name: pytree.tree_map(place, argument) for name, argument in bound.items()}
        if any(value.channels_last for value in inputs):
            raise Unsupported(f"the operator {func._schema.name.removeprefix('aten::')} on channels-last tensors")
        named = {argument.name for argument in func._schema.arguments if argument.kwarg_only}
        arguments = [argument for name, argument in placed.items() if name not in named]
        keywords = {name: argument for name, argument in placed.items() if name in named}
        several = len(outputs) > 1
        calls = [Call(func, arguments, keywords, number if several else None) for number in range(len(outputs))]
        pairs = zip(outputs, calls, strict=True)
        return [
            whole(self.node("torch", output.shape, *inputs, details=call, reduced=reduces)) for output, call in pairs
        ]

    def stored(self, value: Value) -> Value:
        """Return the value without parts that exist only while they are read: enlarged images."""
        if any(node.kind == "enlarged" for node in value.nodes):
            pieces = []
            for piece in value.pieces:
                if piece.node.kind == "enlarged":
                    copied = self.node("point", piece.node.shape, whole(piece.node), details=Point())
                    piece = type(piece)(copied, piece.first, piece.count)
                pieces.append(piece)
            return Value(tuple(pieces))
        return value

    def in_map(self, value: Value) -> Value:
        """Return the value in maps: plain tensors are read into maps."""
        pieces = []
        for piece in self.stored(value).pieces:
            node = piece.node
            if node.kind not in IN_MAPS:
                if node not in self._reads:
                    self._reads[node] = self.node("read", node.shape, whole(node))
                piece = type(piece)(self._reads[node], piece.first, piece.count)
            pieces.append(piece)
        return Value(tuple(pieces), value.channels_last)

    def moments(self, piece: Piece) -> Node:
        """Return the node of means, and of sums of squared distances from them, over all pixels of a map's channels."""
        if piece not in self._moments:
            self._moments[piece] = self.node("moments", (2, piece.count), Value((piece,)), reduced=True)
        return self._moments[piece]

    def together(self, value: Value) -> Value:
        """Return the value as one range of channels of one map: what convolutions and pooling read."""
        value = self.in_map(value)
        if len(value.pieces) == 1:
            return value
        shape = (1, value.channels, *value.pieces[0].node.frame)
        return whole(self.node("point", shape, value, details=Point()))


def _bound(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return all arguments of an operator by name."""
    found = {}
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            found[argument.name] = args[position]
        else:
            found[argument.name] = kwargs.get(argument.name, argument.default_value)
    return found
