"""SAFMN on GPUs by the project's own Triton kernels: those for training, without what only the gradients need."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from safmn.archs import SAFMN
from safmn.inference.backends.base import Backend, register_backend
from safmn.inference.backends.torch_backends import CudaGraphs
from safmn.inference.optimize import frozen_copy
from safmn.kernels.gpu.parameters import Parameters, stacked

_WIDEST = 64  # channels that the kernels support
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class BlocksByKernels(nn.Module):
    """SAFMN with its blocks as a few large kernels. Features between the blocks, the first and last layer are float32.

    Args:
        network: a SAFMN, frozen.
        dtype: type of the arithmetic within the blocks.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network: Any = network
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, h, w), h and w multiples of 8, to (B, 3, h * scale, w * scale), both float32."""
        run = _run_blocks()
        shallow = self.network.to_feat(images).permute(0, 2, 3, 1).contiguous()  # (B, h, w, dim)
        deep = shallow
        parameters = stacked(self.network)
        for number in range(len(self.network.feats)):  # one by one: the memory of a block is free before the next
            deep = run(deep, Parameters(*(part[number : number + 1] for part in parameters)), self.dtype)
        image: Tensor = self.network.to_img((deep + shallow).permute(0, 3, 1, 2))
        return image


def _run_blocks() -> Callable[[Tensor, Parameters, torch.dtype], Tensor]:
    """Return the function that runs blocks; importing it needs Triton."""
    from safmn.kernels.gpu.blocks import run_blocks

    return run_blocks


@register_backend
class TritonKernels(CudaGraphs):
    """SAFMN's Triton kernels, recorded once for each input size and launched together.

    "auto" does not try it, because it has not been measured on a GPU yet.
    """

    name = "triton"
    tried_by_auto = {}  # noqa: RUF012 - a class variable of the base class

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        Backend.__init__(self, network, device=device, precision=precision)
        self._prepare(BlocksByKernels(frozen_copy(network).to(device), _DTYPES[precision]))

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """See :class:`Backend`. Needs a CUDA device and Triton."""
        if device.type != "cuda":
            return f"its kernels need a CUDA device, not {device.type}"
        return None if importlib.util.find_spec("triton") else "Triton is not installed: pip install triton"

    @classmethod
    def unfit(cls, network: nn.Module, precision: str) -> str | None:
        """See :class:`Backend`. SAFMN of up to 64 channels, in half precision: in float32 the kernels use TF32."""
        if type(network) is not SAFMN:
            return f"its kernels are for SAFMN, not for {type(network).__name__}"
        if network.to_feat.out_channels > _WIDEST:
            return f"the network is wider than {_WIDEST} channels"
        return None if precision in _DTYPES else f"its kernels compute in bf16 or fp16, not in {precision}"
