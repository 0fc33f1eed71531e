"""What translations of torch's operators share.

A translation gets the tracer and the operator, and returns the results' values.
"""

from __future__ import annotations

from collections.abc import Callable

from safmn.kernels.cpu.planning.graph import Value
from safmn.kernels.cpu.planning.tracing import Operator, Tracer

Translation = Callable[[Tracer, Operator], list[Value]]


def by_torch(tracer: Tracer, it: Operator) -> list[Value]:
    """Let torch compute it."""
    return tracer.by_torch(it.function, it.arguments, it.outputs)


def reduced_by_torch(tracer: Tracer, it: Operator) -> list[Value]:
    """Let torch compute a small image of a large one."""
    return tracer.by_torch(it.function, it.arguments, it.outputs, reduces=True)


def is_reduced(value: Value) -> bool:
    """Return whether all of a value has far fewer pixels than the frame."""
    return all(node.reduced for node in value.nodes)
