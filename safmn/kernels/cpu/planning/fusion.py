"""Passes over a frame, and which of their operations are computed together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from safmn.kernels.cpu.planning.graph import Activation, Node, Piece, Point, Value, whole


@dataclass(eq=False)
class Pass:
    """A 3x3 convolution or none, and operations on each pixel.

    Attributes:
        frame: height and width.
        head: convolutions of the same input, which are computed as one.
        nodes: the other operations, in order.
        stored: the nodes whose result is kept in a map.
    """

    frame: tuple[int, int]
    head: list[Node] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    stored: set[Node] = field(default_factory=set)

    @property
    def source(self) -> Piece:
        """The input of the convolution: a range of channels of a map."""
        return self.head[0].inputs[0].pieces[0]

    def outside(self) -> Iterable[Node]:
        """Return the nodes of other steps that this pass reads."""
        own = {*self.head, *self.nodes}
        read = [node for item in (*self.head, *self.nodes) for value in item.inputs for node in value.nodes]
        return dict.fromkeys(node for node in read if node not in own)


@dataclass(eq=False)
class Item:
    """A node, with the sum and the activation that are computed together with it.

    Attributes:
        node: what is computed.
        result: the node whose result it gives: ``node``, or the sum or activation after it.
        point: the arithmetic and the activation.
        other: the second operand of the arithmetic.
    """

    node: Node
    result: Node
    point: Point
    other: Value | None = None

    @property
    def reads(self) -> list[Node]:
        """The nodes that it reads."""
        values = (*self.node.inputs, *(() if self.other is None else (self.other,)))
        return [node for value in values for node in value.nodes]


class Fusion:
    """Joins the nodes of a pass to items.

    Attributes:
        activation: of the convolution.
        heads: the nodes whose results the convolution gives.
        items: everything else, in order.
    """

    def __init__(self, work: Pass, users: dict[Node, list[Node]]) -> None:
        self._pass, self._users = work, users
        self.activation, self.heads = self._heads()
        done = set(self.heads)
        self.items: list[Item] = []
        for node in work.nodes:
            if node not in done:
                item = self._item(node)
                done |= {item.result, *self._between(item)}
                self.items.append(item)

    def _only_user(self, node: Node) -> Node | None:
        """Return the only reader of a node, if it is an operation on values of this pass that reads all of it."""
        users = self._users[node]
        if len(users) != 1 or node in self._pass.stored or users[0] not in self._pass.nodes or users[0].kind != "point":
            return None
        return users[0] if whole(node) in users[0].inputs and users[0].shape == node.shape else None

    def _activation_of(self, node: Node) -> Node | None:
        user = self._only_user(node)
        return user if user is not None and user.details.only_activation else None

    def _heads(self) -> tuple[Activation, list[Node]]:
        """Let the convolution apply the activation, if that is the only use of its results."""
        head = self._pass.head
        users = [self._activation_of(node) for node in head]
        found = [user for user in users if user is not None]
        if not found or len(found) < len(head) or len({user.details.activation for user in found}) > 1:
            return Activation(), head
        return found[0].details.activation, found

    def _item(self, node: Node) -> Item:
        if node.kind == "point":
            item = Item(node, node, node.details, node.inputs[1] if len(node.inputs) > 1 else None)
        else:
            item = Item(node, node, Point())
        if node.kind == "conv1":
            self._add(item)
        if node.kind != "normalise" and item.point.activation == Activation():
            user = self._activation_of(item.result)
            if user is not None:
                item.point = replace(item.point, activation=user.details.activation)
                item.result = user
        return item

    def _add(self, item: Item) -> None:
        """Begin the sums of a product with what is added to it, if that exists already."""
        user = self._only_user(item.node)
        if user is None or replace(user.details, activation=Activation()) != Point("+"):
            return
        other = next(value for value in user.inputs if value != whole(item.node))
        own = {*self._pass.nodes}
        late = any(node in own and node.number > item.node.number for node in other.nodes)
        if late or len(other.pieces) > 1 or other.channels not in (1, item.node.shape[1]):
            return
        item.point, item.result, item.other = user.details, user, other

    def _between(self, item: Item) -> list[Node]:
        """Return the nodes that an item computes, but whose results nothing else needs."""
        found, node = [item.node], item.node
        while node is not item.result:
            node = self._users[node][0]
            found.append(node)
        return found
