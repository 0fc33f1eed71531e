"""Count a network's parameters, multiply-adds and activations as fvcore does, without running the network.

The field's papers and challenges use fvcore. Its rules:

- a multiply-add of a convolution or matrix product counts as one; biases do not count;
- nearest-neighbour enlargement counts one per output value, bilinear enlargement four;
- adaptive average pooling counts one per input value;
- fused layer normalisation counts five per value, four without weights;
- activation functions, other poolings and elementwise operations count nothing;
- the activations are the output values of convolutions and matrix products.

The layer normalisation of the SAFMN family is not counted: the published SAFMN writes it out in elementwise operations.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from safmn.archs.blocks import ChannelNorm
from safmn.archs.peers import Form, InForm, bare, folded, in_form, peer_of
from safmn.archs.probing import known_traits

# fvcore's multiply-adds per output value.
_ENLARGEMENTS = {torch.ops.aten.upsample_nearest2d: 1, torch.ops.aten.upsample_bilinear2d: 4}


class Complexity(NamedTuple):
    """The cost of a network for one image."""

    params: int
    multiply_adds: int
    activations: int


class _FunctionCounter(TorchFunctionMode):
    """Counts the operations that fvcore counts as functions, and that torch divides into smaller ones."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0
        self.written_out = 0  # depth of modules whose normalisation counts as written in elementwise operations

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.adaptive_avg_pool2d:
            self.multiply_adds += args[0].numel()
        elif func is functional.layer_norm and not self.written_out:
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            self.multiply_adds += (4 if weight is None else 5) * args[0].numel()
        return func(*args, **kwargs)

    def follow(self, network: nn.Module) -> None:
        """Note when the network is inside a :class:`ChannelNorm`."""
        for module in network.modules():
            if isinstance(module, ChannelNorm):
                module.register_forward_pre_hook(lambda *_: self._enter(1))
                module.register_forward_hook(lambda *_: self._enter(-1))

    def _enter(self, step: int) -> None:
        self.written_out += step


class _Counter(TorchDispatchMode):
    """Counts the operations that run while it is active."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: otherwise torch imports torch._dynamo (a second of CPU time) to exclude this mode from it."""
        return False

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
            with self:  # in inference mode composite operations arrive undecomposed
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


def complexity(network: nn.Module, output_size: tuple[int, int] = (720, 1280), *, device: str = "meta") -> Complexity:
    """Return the cost of ``network`` for one image.

    The count runs on the meta device, so it takes a moment at any image size and does no arithmetic. A network that
    looks at values (``tensor.item()``) needs a real device.

    Args:
        network: takes (B, 3, h, w), or its input in the form that it declares (:mod:`safmn.archs.peers`): then only the
            network is counted, without what brings the image into that form, and a network in the form for training
            is counted as it runs after it is folded. If what runs depends on the image, its method ``counted`` returns
            the network to count. Without the attributes ``scale`` and ``window`` they are found by
            trying.
        output_size: (height, width) of the output. If it is not a multiple of the scale, the input size is rounded up,
            and so it is to multiples of the window for a network that does not pad its input itself.
        device: where the network runs, on zeros.

    Raises:
        ProbingError: the scale is not stated, and the network gives no enlarged RGB image.
    """
    form, shadow = Form(), network
    if isinstance(network, InForm) or peer_of(network) is not None:
        outer = in_form(network)
        form = outer.form if isinstance(outer, InForm) else form
        scale, shadow = int(outer.scale), bare(outer)  # type: ignore[arg-type]
        unit = scale if form.enlarged else 1
        height, width = (unit * form.padded(-(-side // scale)) for side in output_size)
    else:
        traits = known_traits(network)
        height, width = (-(-side // traits.scale) for side in output_size)
        if "window" in traits.found:
            height, width = (-(-side // traits.window) * traits.window for side in (height, width))
    shadow = copy.deepcopy(shadow).to(device).eval()
    with torch.device(device):
        shadow = folded(shadow)
        if peer_of(shadow) is not None and hasattr(shadow, "counted"):
            shadow = shadow.counted()  # type: ignore[operator]
    functions = _FunctionCounter()
    functions.follow(shadow)
    with torch.no_grad(), functions, _Counter() as counter:
        shadow(torch.zeros(1, 1 if form.channels == "Y" else 3, height, width, device=device))
    params = sum(parameter.numel() for parameter in shadow.parameters())
    return Complexity(params, counter.multiply_adds + functions.multiply_adds, counter.activations)
