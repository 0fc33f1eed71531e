"""Kernels of our own for the SAFMN family on CPUs: the fastest way to run these networks there.

They are compiled for the machine at first use (some seconds; a C++ compiler is needed). What they gain on general
engines: Winograd convolutions; norms, modulation, GELU, 1x1 convolutions and sums while the rows are in the cache; the
pooled levels of the modulation at their own resolution.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from safmn.archs.stages import StageModule
from safmn.inference.backends.base import Backend, register_backend
from safmn.inference.backends.torch_backends import Eager
from safmn.inference.optimize import frozen_copy
from safmn.kernels.cpu.build import compiler
from safmn.kernels.cpu.inference import this_machine
from safmn.kernels.cpu.programs import PROGRAMS, translate
from safmn.runtime.threads import Once

logger = logging.getLogger(__name__)


@register_backend
class Native(Backend):
    """SAFMN (any size), SAFMN_BCIE and the NTIRE 2023 entry, and the stages of the first two.

    bfloat16 as :func:`safmn.inference.optimize.with_precision` says, on processors that multiply it; others stay with
    float32, which is faster there and more exact.
    """

    name = "native"
    tried_by_auto: ClassVar[Mapping[str, int]] = {"cpu": 1}

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        kernels = this_machine()
        self._program = translate(frozen_copy(network), kernels, half=precision == "bf16" and kernels.has_half)
        self._eager = Eager(network, device=device, precision=precision)
        self._first_warning = Once()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`. Stages without a kernel, and other sizes than promised there, run eagerly."""
        if self._program is None or x.shape[0] == 0:
            return self._eager(x)
        if any(side % self._program.multiple for side in x.shape[2:]):
            self._warn(x)
            return self._eager(x)
        images = [self._program.run(image) for image in x]
        return images[0][None] if len(images) == 1 else torch.stack(images)

    def _warn(self, x: Tensor) -> None:
        if self._first_warning():
            logger.warning("Back end native: sides of %dx%d have no kernel; run eagerly.", x.shape[3], x.shape[2])

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """Needs a CPU and a C++ compiler."""
        if device.type != "cpu":
            return f"the native kernels are for CPUs, not for {device.type}"
        return None if compiler() else "the native kernels need a C++ compiler (g++ or clang++); install one"

    @classmethod
    def unfit(cls, network: nn.Module, precision: str) -> str | None:
        """The family's networks of feature mixing modules, and stages."""
        if type(network) in PROGRAMS or isinstance(network, StageModule):
            return None
        return f"there are no native kernels for {type(network).__name__}"
