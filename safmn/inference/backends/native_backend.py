"""The project's own kernels, the fastest back end on CPUs for the SAFMN family and for networks of similar operations.

They are compiled for the machine at first use, which takes some seconds and a C++ compiler. They are faster than
general engines because of Winograd convolutions; and because norms, modulation, activations, 1x1 convolutions and sums
run while the rows are in the cache. In SAFMN, pooled levels of the modulation are aggregated at their own resolution.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from safmn.archs import SAFMN
from safmn.inference.backends.base import Backend, register_backend
from safmn.inference.backends.torch_backends import Eager
from safmn.inference.optimize import frozen_copy
from safmn.kernels.cpu import support
from safmn.kernels.cpu.compilation import compiler
from safmn.kernels.cpu.inference import this_machine
from safmn.kernels.cpu.planning.graph import Unsupported
from safmn.kernels.cpu.programs import translate
from safmn.runtime.threads import Once

logger = logging.getLogger(__name__)


@register_backend
class Native(Backend):
    """Runs the SAFMN family, its stages, and every network of operations that the kernels know (docs/performance.md).

    For bfloat16 see :func:`safmn.inference.optimize.with_precision`. Processors without bfloat16 multiplication use
    float32 instead, which is faster there and more exact.
    """

    name = "native"
    tried_by_auto: ClassVar[Mapping[str, int]] = {"cpu": 1}
    follows_threads = True

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        kernels = this_machine()
        self._program = translate(frozen_copy(network), kernels, half=precision == "bf16" and kernels.has_half)
        self.exact_areas = type(network) is SAFMN  # its own program; tests/test_unchanged.py
        self._first = Once()
        self._eager = Eager(network, device=device, precision=precision)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`. Stages without a kernel run eagerly."""
        program = self._program
        if program is None or x.shape[0] == 0 or any(side % program.multiple for side in x.shape[2:]):
            return self._eager(x)
        try:
            images = [program.run(image) for image in x]
        except Unsupported as problem:
            if self._first():
                size = f"{x.shape[3]}x{x.shape[2]}"
                logger.warning("Back end native: eager runs images of %s: no native kernels for %s.", size, problem)
            return self._eager(x)
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
        """See :class:`Backend`. Supports what :func:`safmn.kernels.cpu.programs.translate` does, and stages."""
        return support.unfit(network)
