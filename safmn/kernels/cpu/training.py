"""SAFMN's forward and backward pass in native kernels (``training.cpp``), for training on a CPU in float32.

They are faster than torch's operations for these reasons: Winograd convolutions in both directions; one sample per lane
of the processor's vectors, so every step works on whole vectors and nothing is rearranged; modulation levels that stay
at their own resolution; fewer stored activations.
"""

from __future__ import annotations

import copy
import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safmn.errors import OptionError
from safmn.kernels.checks import check_network, check_sides, relative_error
from safmn.kernels.cpu.build import can_load, load_for_this_machine
from safmn.kernels.cpu.compilation import how_to_get_a_compiler

_SOURCE = Path(__file__).with_name("training.cpp")
_T, _I = ctypes.c_void_p, ctypes.c_int
_SIZES = (_I,) * 7  # batch, height, width, dim, hidden, blocks, scale


class TrainingKernels:
    """The functions of ``training.cpp``.

    Attributes:
        lanes: samples that are computed together. A batch is padded to a multiple of this.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.safmn_kept.argtypes = _SIZES
        self._library.safmn_kept.restype = ctypes.c_ssize_t
        self._library.safmn_train_forward.argtypes = (*(_T,) * 4, *_SIZES, _I)
        self._library.safmn_train_backward.argtypes = (*(_T,) * 4, *_SIZES, _I, _I)
        self.lanes: int = self._library.safmn_lanes()

    def kept(self, sizes: tuple[int, ...]) -> int:
        """Return the number of floats that ``forward`` stores for ``backward``."""
        count: int = self._library.safmn_kept(*sizes)
        return count

    def call(self, function: str, *tensors: Tensor, sizes: tuple[int, ...]) -> None:
        """Call ``safmn_train_<function>`` on contiguous float32 tensors, with as many threads as torch uses.

        ``sizes`` are the function's whole numbers before the number of threads.

        Raises:
            MemoryError: there is not enough memory.
        """
        addresses = [tensor.data_ptr() for tensor in tensors]
        if getattr(self._library, f"safmn_train_{function}")(*addresses, *sizes, torch.get_num_threads()):
            raise MemoryError(f"the native training kernels need more memory than is available ({function} pass)")


@functools.cache
def this_machine(narrow: bool = False) -> TrainingKernels:
    """Return the kernels for this machine. They are built if they are not in the user's cache.

    Args:
        narrow: do not use AVX-512: eight lanes on a processor that has sixteen.

    Raises:
        OSError: they cannot be built.
    """
    return load_for_this_machine(_SOURCE, TrainingKernels, narrow=narrow)


def kernels_for(batch: int) -> TrainingKernels:
    """Return kernels with sixteen lanes if the batch has enough samples for them, otherwise with eight.

    Sixteen lanes take as long for eight samples as for sixteen. Sixteen samples in eight lanes keep two threads busy,
    which takes 0.7 of the time (1.13 with one thread; AMD EPYC, Zen 5). The choice ignores the number of threads,
    because that must not change the result.

    Raises:
        OSError: they cannot be built.
    """
    widest = this_machine()
    narrow = batch <= 16 or 0 < batch % 16 <= 8
    return this_machine(narrow=True) if widest.lanes == 16 and narrow else widest


class _Run(torch.autograd.Function):
    """The network as a function of the images, which get no gradient, and the parameters in state-dict order."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, kernels: TrainingKernels, sizes: tuple[int, ...], images: Tensor, *parameters: Tensor
    ) -> Tensor:
        batch, height, width, *_, scale = sizes
        ctx.kernels, ctx.sizes = kernels, sizes
        ctx.flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        ctx.shapes = [parameter.shape for parameter in parameters]
        ctx.kept = torch.empty(kernels.kept(sizes), dtype=torch.float32)
        out = torch.empty(batch, 3, height * scale, width * scale, dtype=torch.float32)
        kernels.call("forward", images.float().contiguous(), out, ctx.kept, ctx.flat, sizes=sizes)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        flat, needed = torch.empty_like(ctx.flat), ctx.needs_input_grad[3:]
        sizes = (*ctx.sizes, _frozen_stages(needed, blocks=ctx.sizes[5]))
        ctx.kernels.call("backward", gradient.float().contiguous(), ctx.kept, ctx.flat, flat, sizes=sizes)
        parts = zip(flat.split([shape.numel() for shape in ctx.shapes]), ctx.shapes, needed, strict=True)
        return None, None, None, *(part.view(shape) if wanted else None for part, shape, wanted in parts)


def _frozen_stages(needed: Sequence[bool], *, blocks: int) -> int:
    """Return how many of the first stages (to_feat, then the blocks) need no gradients: the backward pass ends there.

    Args:
        needed: for each parameter in state-dict order, whether its gradient is needed.
        blocks: number of blocks, which have equally many parameters; to_feat and to_img have two each.
    """
    each = (len(needed) - 4) // blocks
    stages = [needed[:2], *(needed[2 + i * each : 2 + (i + 1) * each] for i in range(blocks))]
    return next((count for count, stage in enumerate(stages) if any(stage)), len(stages))


class NativeSAFMN(nn.Module):
    """SAFMN computed by the kernels. It shares the parameters of ``network``.

    Raises:
        OptionError: ``network`` is not SAFMN, or there is no compiler to build the kernels.
        OSError: the kernels cannot be built.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        check_network(network)
        if not can_load():
            raise OptionError(
                f"train.kernels: native needs a C++ compiler: {how_to_get_a_compiler()}. Without one, remove this key"
            )
        self.network = network
        this_machine()  # report a failed build now, not at the first step
        own: Any = network
        mixer = own.feats[0].ccm.ccm[0]
        self._arguments = (own.to_feat.out_channels, mixer.out_channels, len(own.feats), own.scale)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, h, w), float32, h and w multiples of 8, to (B, 3, h * scale, w * scale)."""
        check_sides(images)
        if images.requires_grad:
            raise NotImplementedError("the native training kernels compute no gradient for the images")
        batch, _, height, width = images.shape
        sizes = (batch, height, width, *self._arguments)
        result: Tensor = _Run.apply(kernels_for(batch), sizes, images, *self.network.parameters())
        return result


def kernel_error(network: nn.Module) -> float:
    """Return the kernels' relative error (of norms) on random images, the larger one of output and gradients."""
    network = copy.deepcopy(network).requires_grad_(True)
    return relative_error(network, NativeSAFMN(network), list(network.parameters()))
