"""Run a network for testing and validating: on the native CPU kernels if they give its result, otherwise as it is."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from safmn.errors import OptionError, first_line
from safmn.inference.optimize import frozen_copy
from safmn.inference.samples import made_up_photographs
from safmn.kernels.cpu.inference import one_thread, this_machine
from safmn.kernels.cpu.planning.graph import Unsupported
from safmn.kernels.cpu.programs import Program, translate
from safmn.kernels.cpu.support import why_not
from safmn.runtime.threads import Lock
from safmn.weights.networks import kind_of

logger = logging.getLogger(__name__)

Kernels = Literal["auto", "native", "torch"]
_LARGEST_ERROR = 2e-5
"""Largest error relative to eager mode, for an output of 0 to 1. A 200th of a level of 8 bits keeps the digits."""
_SAMPLE = (19, 45)  # no multiples of 8: pooling is adaptive, as for most images of a benchmark


def fastest(network: nn.Module, device: torch.device, *, kernels: Kernels = "auto") -> nn.Module | FastNetwork:
    """Return ``network`` in the form that tests it fastest on ``device``.

    Args:
        network: the network on the device, in eval mode.
        device: its device.
        kernels: ``auto``: native kernels for networks that have some, if they agree; ``native``: the same, but it is an
            error if there are none; ``torch``: no native kernels.

    Raises:
        OptionError: ``kernels`` is ``native``, and there are no native kernels for the network, the device or the
            machine.
    """
    reason = None if kernels == "torch" else _why_not(network, device)
    if reason and kernels == "native":
        raise OptionError(f"kernels: native cannot be used: {reason}; choose auto or torch")
    return network if reason or kernels == "torch" else FastNetwork(network, required=kernels == "native")


def _why_not(network: nn.Module, device: torch.device) -> str | None:
    """Return why the kernels cannot test a network; None if they can."""
    if not hasattr(network, "window"):  # which sizes it takes is found by trying it
        return f"{type(network).__name__} has no attribute window, so it may need padded images"
    return why_not(network, device)


class FastNetwork:
    """A network on the native kernels, for :func:`safmn.evaluation.scoring.evaluate`; made by :func:`fastest`.

    The first call takes over the network's weights, and so does the first one after :meth:`renew`. The kernels get
    packed copies of them, which takes milliseconds, and are compared with the network in eager mode. If the results
    differ, the network runs as it is.

    Args:
        network: a network on the CPU for which there are kernels, in eval mode during calls.
        required: it is an error if the kernels cannot be built.

    Attributes:
        network: the network.
        window, halo: those of the network.
    """

    def __init__(self, network: nn.Module, *, required: bool = False) -> None:
        self.network = network
        own: Any = network
        self.window, self.halo = own.window, own.halo
        self._required = required
        self._program: Program | None = None
        self._decided = False
        self._lock = Lock()
        self._said = ""

    @property
    def images_at_once(self) -> int:
        """How many threads may call this at once with good use of the processor: each call then uses one thread."""
        return torch.get_num_threads()

    def renew(self) -> None:
        """Take over the network's weights again at the next call."""
        self._decided = False

    def _choose(self) -> Program | None:
        """Return the network as a program if the kernels give its result, and log the decision."""
        with self._lock:
            if not self._decided:
                self._program, self._decided = self._checked(), True
            return self._program

    def _checked(self) -> Program | None:
        try:
            program = translate(frozen_copy(self.network), this_machine(), half=False)
        except OSError as failure:  # the compiler failed
            if self._required:
                raise
            self._say(f"not used: {first_line(failure)}", logging.WARNING)
            return None
        error = _error(program, self.network)
        if not error <= _LARGEST_ERROR:  # NaN is not, either
            self._say(f"not used: they differ from eager mode by {error:.1e}", logging.WARNING)
            return None
        self._say(f"used: they agree with eager mode to {max(error, 1e-7):.0e}", logging.INFO)
        return program

    def _say(self, text: str, level: int) -> None:
        """Log how the network runs, unless it was said before."""
        way = text.split(":")[0]
        if way != self._said:
            logger.log(level, "native kernels for testing %s: %s", kind_of(self.network), text)
            self._said = way

    def __call__(self, lq: Tensor) -> Tensor:
        """Map (B, C, h, w) in [0, 1] to (B, C, h * scale, w * scale). Several threads may call it at once."""
        program = self._choose()
        if program is None or any(side % program.multiple for side in lq.shape[2:]):
            output: Tensor = self.network(lq)
            return output
        try:
            with torch.no_grad(), one_thread(self.images_at_once > 1):
                return torch.stack([program.run(image) for image in lq])
        except Unsupported as problem:
            self._say(f"not used for {lq.shape[3]}x{lq.shape[2]}: no native kernels for {problem}", logging.WARNING)
            output = self.network(lq)
            return output


@torch.no_grad()
def _error(program: Program | None, network: Any) -> float:
    """Return the program's largest error on a made-up photograph, relative to the output if that exceeds 1."""
    if program is None:
        return float("inf")
    sides = (-(-side // program.multiple) * program.multiple for side in _SAMPLE)
    sample = made_up_photographs(*sides)[:1]
    expected = network(sample)
    error = (program.run(sample[0]) - expected[0]).abs().max() / expected.abs().max().clamp(min=1)
    return float(error)
