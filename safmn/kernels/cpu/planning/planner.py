"""Run a network on the native kernels by plans that are made for each size of image."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from safmn.errors import first_line
from safmn.kernels.cpu.inference import Kernels
from safmn.kernels.cpu.planning.graph import Unsupported
from safmn.kernels.cpu.planning.packing import Packing
from safmn.kernels.cpu.planning.plan import Plan
from safmn.kernels.cpu.planning.tracing import Traceable
from safmn.runtime.threads import Lock

_KEPT = 8  # plans


class Planner:
    """A network on the native kernels.

    Args:
        network: maps (B, C, h, w) to (B, C', h', w'), in eval mode. Its weights must not change.
        kernels: the kernels that run it.
        half: see :func:`safmn.kernels.cpu.programs.translate`.
    """

    def __init__(self, network: nn.Module, kernels: Kernels, *, half: bool) -> None:
        self._traceable = Traceable(network)
        self._channels, self._kernels, self._half = input_channels(network), kernels, half
        self._packing = Packing(kernels.block_size)
        self._plans: OrderedDict[tuple[int, int], Plan] = OrderedDict()
        self._lock = Lock()

    def plan(self, height: int, width: int) -> Plan:
        """Return the plan for images of this size.

        Raises:
            Unsupported: the network does something that the kernels cannot, at this size.
        """
        with self._lock:
            found = self._plans.pop((height, width), None)
            if found is None:
                result, _ = self._traceable.trace(self._channels, height, width)
                found = Plan(result, self._kernels, self._packing, half=self._half)
            self._plans[height, width] = found
            while len(self._plans) > _KEPT:
                self._plans.popitem(last=False)
            return found

    def __call__(self, image: Tensor) -> Tensor:
        """Map an image (C, h, w) to (C', h', w')."""
        return self.plan(*image.shape[1:])(image)


def unsupported(network: nn.Module) -> str | None:
    """Return which operation of a network the kernels cannot do; None if they can do all."""
    side = typical_side(network)
    try:
        Traceable(network).trace(input_channels(network), side, side)
    except Unsupported as problem:
        return str(problem)
    except Exception as error:  # foreign networks may not allow a copy
        return f"it cannot be copied: {type(error).__name__}: {first_line(error)}"
    return None


def input_channels(network: nn.Module) -> int:
    """Return the channels of a network's input: its ``in_channels`` (stages have it), or 3."""
    return int(getattr(network, "in_channels", 3))


def typical_side(network: nn.Module) -> int:
    """Return a side of images that a network takes: whole windows, at least 16 pixels."""
    window = int(getattr(network, "window", 1))
    return 2 * window * -(-8 // window)
