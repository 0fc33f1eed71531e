"""The project's own kernels for the SAFMN family, the fastest back end for these networks on CPUs.

They are compiled for the machine at first use, which takes some seconds and a C++ compiler. They are faster than
general engines because of Winograd convolutions; because norms, modulation, GELU, 1x1 convolutions and sums run while
the rows are in the cache; and because pooled levels of the modulation are aggregated at their own resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from safmn.inference.backends.base import Backend, register_backend
from safmn.inference.backends.torch_backends import Eager
from safmn.inference.optimize import frozen_copy
from safmn.kernels.cpu import support
from safmn.kernels.cpu.compilation import compiler
from safmn.kernels.cpu.inference import this_machine
from safmn.kernels.cpu.programs import translate


@register_backend
class Native(Backend):
    """Runs SAFMN (any size), SAFMN_BCIE and the NTIRE 2023 entry, and the stages of the first two.

    For bfloat16 see :func:`safmn.inference.optimize.with_precision`. Processors without bfloat16 multiplication use
    float32 instead, which is faster there and more exact.
    """

    name = "native"
    tried_by_auto: ClassVar[Mapping[str, int]] = {"cpu": 1}

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        kernels = this_machine()
        self._program = translate(frozen_copy(network), kernels, half=precision == "bf16" and kernels.has_half)
        self._eager = Eager(network, device=device, precision=precision)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`. Stages without a kernel run eagerly."""
        program = self._program
        if program is None or x.shape[0] == 0 or any(side % program.multiple for side in x.shape[2:]):
            return self._eager(x)
        images = [program.run(image) for image in x]
        return images[0][None] if len(images) == 1 else torch.stack(images)

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """See :class:`Backend`. Needs a CPU and a C++ compiler."""
        return support.missing(device)

    @classmethod
    def versions(cls) -> tuple[str, ...]:
        """The compiler. The kernels themselves are SAFMN's files."""
        return (compiler() or "no compiler",)

    @classmethod
    def unfit(cls, network: nn.Module, precision: str) -> str | None:
        """See :class:`Backend`. Supports the networks in :data:`safmn.kernels.cpu.programs.PROGRAMS`, and stages."""
        return support.unfit(network)
