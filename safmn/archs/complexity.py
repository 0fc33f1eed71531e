"""Parameters, multiply-adds and activations of a network, counted as fvcore counts them, without running it.

fvcore is what the field's papers and challenges use. It counts a multiply-add as one, for convolutions and matrix
products without their biases; one for each value of nearest and four for each value of bilinear enlargement; nothing
for activation functions, poolings and elementwise operations. Activations are the outputs of the convolutions and
matrix products. Layer normalisation is not counted here: fvcore counts none for the published SAFMN, which has it
written out, and five per value for the fused operation, though the network is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Multiply-adds for each output value, as fvcore has them.
_ENLARGEMENTS = {torch.ops.aten.upsample_nearest2d: 1, torch.ops.aten.upsample_bilinear2d: 4}


class Complexity(NamedTuple):
    """What a network costs for one image."""

    params: int
    multiply_adds: int
    activations: int


class _Counter(TorchDispatchMode):
    """Counts the operations that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0
        self.activations = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = func.overloadpacket
        if operation not in flop_registry and operation not in _ENLARGEMENTS:
            with self:  # in inference mode composite operations arrive whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if operation in flop_registry:
            # PyTorch's formulas count a multiply-add as two.
            self.multiply_adds += flop_registry[operation](*args, **kwargs, out_val=result) // 2
            self.activations += result.numel() if isinstance(result, Tensor) else result[0].numel()
        elif operation in _ENLARGEMENTS:
            self.multiply_adds += _ENLARGEMENTS[operation] * result.numel()
        return result


def complexity(network: nn.Module, output_size: tuple[int, int] = (720, 1280)) -> Complexity:
    """Count what ``network`` does for one image, on the meta device (no arithmetic, any size, a moment).

    Args:
        network: takes (B, 3, h, w); its ``scale`` (1 where it has none) gives the input's size.
        output_size: (height, width) of the output; where it is no multiple of the scale, the input is rounded up.
    """
    scale = int(getattr(network, "scale", 1))
    height, width = (-(-side // scale) for side in output_size)
    shadow = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad(), _Counter() as counter:
        shadow(torch.empty(1, 3, height, width, device="meta"))
    params = sum(parameter.numel() for parameter in network.parameters())
    return Complexity(params, counter.multiply_adds, counter.activations)
